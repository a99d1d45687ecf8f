"""A function of images and prompts, for a loop of your own, and for T2I-R1, whose rewards have that shape.

    from rewardzoo.clients.adapters import plain

    score = plain.reward_function("http://127.0.0.1:3000", {"hpsv2:v2.1": 1.0, "imagereward:v1.0": 0.2})
    rewards = score(images, prompts)  # a list of N floats

For T2I-R1 hand it to the trainer in place of a class of `src/t2i-r1/src/utils/reward_*.py`; the columns of
its data are what our `gitvqa` and `grounding` take as metadata:

    plain.reward_function(url, "gitvqa", metadata=["attr_nouns", "nouns", "task_type"])
    columns = ["nouns", "task_type", "spatial_info", "numeracy_info"]
    plain.reward_function(url, "grounding:t2i-r1", metadata=columns)

T2I-R1 calls `f(prompts=[str], images=[PIL], **columns)` and expects a list of floats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rewardzoo.clients.adapters._columns import metadata_of
from rewardzoo.clients.adapters._judge import Judge, Source
from rewardzoo.clients.scorer import OnError, Reward

RewardFunction = Callable[..., list[float | None]]


def reward_function(
    source: Source,
    reward: Reward | None = None,
    *,
    metadata: str | Sequence[str] | None = None,
    on_error: OnError = "raise",
    **options: Any,
) -> RewardFunction:
    """Return `f(images, prompts, **columns)`, one float an image, None where `on_error` is "none".

    `metadata` names a column of objects, or columns to make them of. `reward`, `on_error` and `options` are
    as in `Judge`.
    """
    judge = Judge(source, reward, on_error=on_error, **options)

    def score(images: Any, prompts: Sequence[Any], **columns: Any) -> list[float | None]:
        return judge.score(images, prompts, metadata_of(columns, metadata, len(prompts))).totals

    score.__name__ = judge.name
    return score
