"""Images sampled for prompts: each process its share, batch by batch, with scoring under way meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewardzoo.trainers.policies.policy import PromptBatch
from rewardzoo.trainers.prompts import Prompt
from rewardzoo.trainers.rewards import Pending
from rewardzoo.trainers.sharding import gathered

if TYPE_CHECKING:
    from rewardzoo.trainers.run import Run


@dataclass(frozen=True)
class Images:
    """This process's n images, groups kept together.

    `prompts` and `groups`, the place of its prompt in the global step, are one an image; `batch` is the
    prompts (n, L) as the policy reads them, padded alike in all processes; `tokens` int64 and `logprobs`
    float32 are (n, N), `pixels` uint8 (n, H, W, 3); `pending` is what is being scored.
    """

    prompts: Sequence[Prompt]
    groups: Sequence[int]
    batch: PromptBatch
    tokens: Tensor
    logprobs: Tensor
    pixels: NDArray[np.uint8]
    pending: Sequence[Pending]

    def __len__(self) -> int:
        return len(self.groups)


def rollout(
    run: Run[Any], prompts: Sequence[Prompt], group_size: int, key: tuple[int, ...], *, score: bool
) -> Images:
    """Sample images; see `Run.rollout`. `key` is what, beside the seed, chance follows from."""
    settings, policy = run.config.sampling, run.policy
    places = [(place, copy) for place in run.share(range(len(prompts))) for copy in range(group_size)]
    groups = [place for place, _ in places]
    texts = [prompt.text for prompt in prompts]
    # Encoded as a whole and then shared, so that the padding is the same for any number of processes.
    batch = policy.encode(texts).to(run.accelerator.device)[torch.tensor(groups)]
    mine = [prompts[place] for place in groups]
    tokens, logprobs, pixels, pending = [], [], [], []
    for start in range(0, len(groups), settings.batch_size):
        rows = slice(start, start + settings.batch_size)
        chance = draw((run.config.run.seed, *key), places[rows], policy.tokens_per_image)
        with torch.no_grad(), gathered(run.model), run.accelerator.autocast():
            found = policy.sample(
                batch[rows], torch.from_numpy(chance).to(run.accelerator.device), settings.sampling()
            )
            decoded = policy.decode(found.tokens)
        if score:
            pending.append(run.rewards.submit(decoded, mine[rows]))
        tokens.append(found.tokens)
        logprobs.append(found.logprobs)
        pixels.append(decoded)
    return Images(
        mine, groups, batch, torch.cat(tokens), torch.cat(logprobs), np.concatenate(pixels), pending
    )


def draw(key: Sequence[int], places: Sequence[tuple[int, int]], count: int) -> NDArray[np.float64]:
    """Return uniforms (n, count) in [0, 1), row by row from `key` and its (prompt, copy) alone."""
    return np.stack([np.random.default_rng([*key, *place]).random(count) for place in places])
