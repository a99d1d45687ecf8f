"""DPO: sample candidates for a prompt, score them, and make the better of a pair likelier than the worse.

    candidates -> scores -> pairs -> log-probabilities of the reference -> update

Source: DPO (arXiv 2305.18290). For image tokens arXiv 2501.13926 and 2505.17017; condition dropout that is
drawn for each side alone, as in the former's code, is not followed: images are compared under one prompt.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from rewardzoo.trainers.config import Section, TrainConfig
from rewardzoo.trainers.losses import DPOMetrics, PreferenceLoss, dpo_loss
from rewardzoo.trainers.pair_logprobs import pair_logprobs, read_conditions, read_tokens
from rewardzoo.trainers.pair_sources import ITERATIVE, ONLINE, PairsSection, open_source
from rewardzoo.trainers.policies.policy import ARImagePolicy
from rewardzoo.trainers.preferences import Preferences
from rewardzoo.trainers.run import Run

ALGORITHM = "dpo"


class DPOSection(Section):
    """Settings of the loss: see `rewardzoo.trainers.losses.dpo_loss`.

    `beta` of `sigmoid` and `hinge` multiplies a sum over all tokens of an image: at 576 of them 0.1 saturates
    within an epoch. The logged `slope` says how much of the gradient is left.
    """

    loss: PreferenceLoss = "sigmoid"
    beta: float = Field(default=0.1, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    sft: float = Field(default=0.0, ge=0)
    gamma: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _can_be_computed(self) -> Self:
        none = torch.zeros(0, 2)
        self.of(none, none, tokens=1)
        return self

    def of(self, pairs: Tensor, reference: Tensor, **more: Any) -> tuple[Tensor, DPOMetrics]:
        """Return the loss of pairs by their log-probabilities (m, 2), as the settings say."""
        (chosen, rejected), (before, beside) = pairs.unbind(1), reference.unbind(1)
        return dpo_loss(chosen, rejected, before, beside, **self.model_dump(), **more)


class DPOConfig(TrainConfig):
    """What `rewardzoo train dpo` is told.

    Where pairs come from a file and there is no evaluation, nothing is sampled and nothing scored: `prompts`
    and `rewards` may be left out.
    """

    pairs: PairsSection = PairsSection()
    dpo: DPOSection = DPOSection()

    @model_validator(mode="after")
    def _rounds_are_alike(self) -> Self:
        if self.pairs.source == ITERATIVE and self.run.steps % self.pairs.rounds:
            raise ValueError(
                f"run.steps, {self.run.steps}, must be a multiple of pairs.rounds, {self.pairs.rounds}"
            )
        if self.critic and self.pairs.source not in (ITERATIVE, ONLINE):
            raise ValueError(
                f"critic: with pairs.source {self.pairs.source!r} nothing is scored: take iterative or online"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _files_need_no_rewards(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        source = (given.get("pairs") or {}).get("source", ITERATIVE)
        if source in (ITERATIVE, ONLINE) or (given.get("evaluation") or {}).get("sets"):
            return given
        unused = {
            "prompts": {"source": "lab:in_domain", "count": 1},
            "rewards": {"weights": {"lab:exact": 1.0}},
        }
        return {**unused, **given}


def train(config: DPOConfig, policy: ARImagePolicy) -> int:
    """Train a policy, and return the exit code: 0, or 128 and the number of the signal that stopped it.

    Raises:
        RewardsLostError: the rewards are gone; the checkpoint is saved.
        ValueError: settings that do not fit each other, the files or the number of processes.
    """
    with Run(config, ALGORITHM, policy) as run:
        source = open_source(run, config.pairs)
        for _ in run.steps():
            began = time.monotonic()
            pairs, said = source.take()  # the same in every process
            taken = time.monotonic()
            run.log({**said, "seconds/pairs": taken - began})
            if len(pairs):
                run.log({**_update(run, pairs), "seconds/update": time.monotonic() - taken})
    return run.exit_code


def _update(run: Run[DPOConfig], pairs: Preferences) -> dict[str, float]:
    """Take an optimizer step on M pairs; the loss is their mean, whichever process computes which."""
    sampling = run.config.sampling.sampling()
    # As many in each process: what is one too many weighs nothing.
    share = -(-len(pairs) // run.processes)
    places = np.arange(share) + share * run.accelerator.process_index
    mine = places % len(pairs)
    weights = torch.from_numpy((places < len(pairs)).astype(np.float32)).to(run.accelerator.device)
    # Encoded as a whole and then shared, so that the padding is the same for any number of processes.
    prompts = read_conditions(run, pairs)[torch.from_numpy(mine)]  # (m, L)
    tokens = read_tokens(run, pairs[mine])  # (m, 2, N)
    reference = torch.from_numpy(pairs.reference[mine]).to(tokens.device)  # (m, 2)
    sums: dict[str, Tensor | float] = {}

    def loss_of(rows: slice) -> Tensor:
        both = pair_logprobs(run.model, prompts[rows], tokens[rows], sampling)
        loss, metrics = run.config.dpo.of(
            both,
            reference[rows],
            tokens=tokens.shape[2],
            weights=weights[rows],
            normalizer=len(pairs),
        )
        for name, value in {"loss": loss.detach(), **metrics._asdict()}.items():
            sums[name] = sums.get(name, 0.0) + value
        return loss

    taken = run.update(share, loss_of)
    return {**run.total(sums), **taken}
