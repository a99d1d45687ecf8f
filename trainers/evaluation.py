"""How good a policy is on prompts that stay the same, by every reward and judge."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rewardzoo.trainers.grids import Sample
from rewardzoo.trainers.prompts import Prompt
from rewardzoo.trainers.rollout import rollout

if TYPE_CHECKING:
    from rewardzoo.trainers.run import Run

_EVALUATION = 1
_DRAWN = 16


def score_metrics(run: Run[Any], parts: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """Return the mean score (n,) of each reward and judge, and how far a critic that is refreshed drifted."""
    judges = run.rewards.held_out
    found = {f"{'judge' if name in judges else 'reward'}/{name}": mean(v) for name, v in parts.items()}
    return found | (run.critic.drift(parts) if run.critic else {})


def mean(values: NDArray[np.float32]) -> float:
    """Return the mean of what is known, NaN where nothing is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def evaluate(run: Run[Any], name: str, prompts: Sequence[Prompt], images_per_prompt: int) -> dict[str, float]:
    """Return mean and spread of each reward's and judge's scores, without the items that failed.

    They are `eval/NAME/REWARD` and, between images, `eval_std/NAME/REWARD`.

    What is drawn is the same at every step. Draws a grid of the first images.
    """
    # Prompts are repeated up to a whole number for each process, and the repetitions left out at the end.
    spare = -len(prompts) % run.processes
    padded = [*prompts, *(prompts[i % len(prompts)] for i in range(spare))]
    key = (_EVALUATION, zlib.crc32(name.encode()))
    images = rollout(run, padded, images_per_prompt, key, score=True)
    scores = run.rewards.collect(images.pending, images.groups)
    counts = np.array([place < len(prompts) for place in scores.groups])
    found = {}
    for judge, values in scores.parts.items():
        kept = values[counts & np.isfinite(values)]
        found[f"eval/{name}/{judge}"] = float(kept.mean()) if kept.size else float("nan")
        found[f"eval_std/{name}/{judge}"] = float(kept.std()) if kept.size else float("nan")
    drawn = range(min(_DRAWN, len(images)))
    own = {judge: values[scores.mine] for judge, values in scores.parts.items()}
    run.tracking.grid(
        run.step,
        name,
        [
            Sample(images.pixels[i], images.prompts[i].text, [f"{j} {v[i]:.3g}" for j, v in own.items()])
            for i in drawn
        ],
    )
    return found
