"""GRPO: sample a group of images a prompt, score them, and make likelier what beats its group.

Source: DeepSeekMath (arXiv 2402.03300); for image tokens T2I-R1 (arXiv 2505.00703), whose departures from it
(no clipping, scores at the end of the step, groups padded by process) are not followed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from rewardzoo.trainers.config import Section, TrainConfig
from rewardzoo.trainers.evaluation import score_metrics
from rewardzoo.trainers.grids import Sample
from rewardzoo.trainers.losses import AdvantageForm, Advantages, Ratio, group_advantages, grpo_loss
from rewardzoo.trainers.policies.policy import ARImagePolicy
from rewardzoo.trainers.rewards import Scores
from rewardzoo.trainers.rollout import Images
from rewardzoo.trainers.run import Run

ALGORITHM = "grpo"
_DRAWN = 4  # groups in a grid, and images of each


class GRPOSection(Section):
    """Settings of GRPO; `advantage`, `ratio` and the clips are those of `rewardzoo.trainers.losses`.

    A step samples `group_size` images for each of `prompts_per_step` prompts, of all processes together, and
    takes `inner_epochs` optimizer steps on all of them. `beta` weighs the KL to the policy as it began; at 0
    there is no reference.
    """

    prompts_per_step: int = Field(default=16, ge=1)
    group_size: int = Field(default=8, ge=2)
    beta: float = Field(default=0.01, ge=0)
    clip_low: float = Field(default=0.2, gt=0)
    clip_high: float = Field(default=0.2, gt=0)
    inner_epochs: int = Field(default=1, ge=1)
    advantage: AdvantageForm = "group"
    advantage_clip: float | None = Field(default=None, gt=0)
    ratio: Ratio = "token"


class GRPOConfig(TrainConfig):
    """What `rewardzoo train grpo` is told."""

    grpo: GRPOSection = GRPOSection()


def train(config: GRPOConfig, policy: ARImagePolicy) -> int:
    """Train a policy, and return the exit code: 0, or 128 and the number of the signal that stopped it.

    Raises:
        RewardsLostError: the rewards are gone; the checkpoint is saved.
        ValueError: settings that do not fit each other, the files or the number of processes.
    """
    settings = config.grpo
    with Run(config, ALGORITHM, policy) as run:
        reference = run.reference() if settings.beta else None
        for step in run.steps():
            clock = _Clock()
            images = run.rollout(run.take(settings.prompts_per_step), settings.group_size)
            clock.lap("sample")
            # The rewards are in flight meanwhile.
            reference_logprobs = _logprobs(run, reference, images)  # (n, N)
            clock.lap("reference")
            scores = run.rewards.collect(images.pending, images.groups)
            totals = run.rewards.mix(scores)  # (P * G,), of all processes
            clock.lap("wait")
            rewards = torch.from_numpy(totals).view(-1, settings.group_size)
            found = group_advantages(rewards, settings.advantage, clip=settings.advantage_clip)
            learnt = _update(run, images, found, scores.mine, reference_logprobs)
            clock.lap("update")
            run.log({**_rewards(run, scores, totals, found), **learnt})
            run.log(_times(clock, images, scores))
            if run.grid_due():
                run.tracking.grid(step, "train", _samples(settings.group_size, images, scores, totals))
    return run.exit_code


def _logprobs(run: Run[GRPOConfig], model: nn.Module | None, images: Images) -> Tensor | None:
    """Return log-probabilities (n, N) of this process's images under a model, without gradients."""
    if model is None:
        return None
    size, sampling = run.config.optimizer.micro_batch_size, run.config.sampling.sampling()
    found = []
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        with torch.no_grad(), run.accelerator.autocast():
            found.append(model(images.batch[rows], images.tokens[rows], sampling).logprobs.float())
    return torch.cat(found)


def _update(
    run: Run[GRPOConfig],
    images: Images,
    found: Advantages,
    mine: slice,
    reference_logprobs: Tensor | None,
) -> dict[str, float]:
    """Take the optimizer steps of one GRPO step; the loss is the mean over all tokens of all processes."""
    settings, sampling = run.config.grpo, run.config.sampling.sampling()
    device = images.tokens.device
    advantages = found.advantages.flatten()[mine].to(device)  # (n,)
    weights = found.weights.flatten()[mine].to(device)  # (n,)
    count = float(found.weights.sum()) * images.tokens.shape[1]
    old = torch.zeros_like(images.logprobs)  # (n, N)
    metrics: dict[str, float] = {}
    for epoch in range(settings.inner_epochs):
        sums: dict[str, Tensor | float] = {}

        def loss_of(rows: slice, epoch: int = epoch, sums: dict[str, Tensor | float] = sums) -> Tensor:
            logprobs, entropy = run.model(images.batch[rows], images.tokens[rows], sampling)
            if epoch == 0:  # as teacher forcing sees the policy that sampled, so that the ratio is 1 exactly
                old[rows] = logprobs.detach()
            loss, said = grpo_loss(
                logprobs,
                advantages[rows],
                old_logprobs=old[rows],
                reference_logprobs=None if reference_logprobs is None else reference_logprobs[rows],
                beta=settings.beta,
                clip_low=settings.clip_low,
                clip_high=settings.clip_high,
                ratio=settings.ratio,
                weights=weights[rows],
                normalizer=count,
                entropy=entropy.detach(),
            )
            gap = (logprobs.detach() - images.logprobs[rows]).abs().sum() / images.logprobs.shape[1]
            _add(sums, {"loss": loss.detach(), **said._asdict(), "logp_gap": gap})
            return loss

        taken = run.update(len(images), loss_of)
        if reference_logprobs is None:
            sums.pop("kl")
        totals = run.total({**sums, "images": float(len(images))})
        # How far rollout and teacher forcing are apart is of the policy that sampled, the rest as it became.
        gap = totals.pop("logp_gap") / totals.pop("images")
        metrics |= {**totals, **taken, "logp_gap": metrics.get("logp_gap", gap)}
    return metrics


def _rewards(
    run: Run[GRPOConfig], scores: Scores, totals: np.ndarray[Any, Any], found: Advantages
) -> dict[str, float]:
    groups = len(found.advantages)
    metrics = {
        "reward": float(np.nanmean(totals)),
        "reward_std": float(np.nanstd(totals)),
        "failed": float(np.isnan(totals).mean()),
        "zero_variance": found.zero_variance / groups,
        "too_few": found.too_few / groups,
    }
    return {**metrics, **score_metrics(run, scores.parts)}


def _times(clock: _Clock, images: Images, scores: Scores) -> dict[str, float]:
    """Return seconds by what they were spent on, and image tokens sampled a second, by all processes."""
    sampling = clock.seconds["seconds/sample"] - sum(each.waited for each in images.pending)
    rate = len(scores.groups) * images.tokens.shape[1] / sampling
    return {
        **clock.seconds,
        "seconds/sample": sampling,
        "seconds/wait": scores.waited,
        "tokens_per_second": rate,
    }


def _samples(size: int, images: Images, scores: Scores, totals: np.ndarray[Any, Any]) -> list[Sample]:
    own = {"reward": totals[scores.mine], **{n: v[scores.mine] for n, v in scores.parts.items()}}
    return [
        Sample(images.pixels[i], images.prompts[i].text, [f"{name} {v[i]:.3g}" for name, v in own.items()])
        for first in range(0, len(images), size)[:_DRAWN]
        for i in range(first, first + min(size, _DRAWN))
    ]


def _add(sums: dict[str, Tensor | float], more: Mapping[str, Tensor]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value


class _Clock:
    """Seconds between laps, as `seconds/NAME`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[f"seconds/{name}"] = now - self._last
        self._last = now
