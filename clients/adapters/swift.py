"""ms-swift: reward functions for GRPO, sync (ORM) and async (AsyncORM), by way of a plugin.

    # plugin.py
    from swift.rewards import orms
    from rewardzoo.clients.adapters import swift

    orms["hpsv2"] = swift.orm("http://127.0.0.1:3000", "hpsv2:v2.1")
    orms["imagereward"] = swift.async_orm("http://127.0.0.1:3000", "imagereward:v1.0")

    swift rlhf --rlhf_type grpo --external_plugins plugin.py \\
        --reward_funcs hpsv2 imagereward --reward_weights 1 0.5 …

ms-swift makes an instance of the class and calls it with `completions` and the columns of the batch (those of
the dataset, `messages`, `images`, `trainer_state`): one float or None each is what it takes, None being its
"could not score". An async one is awaited beside the others.

The image is in a column: `images` of the dataset, or what a rollout plugin adds. The prompt is what the last
user's message of `messages` says.

Source: `swift/rewards/orm.py`, `swift/rl_core/grpo_algorithm.py` (4.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewardzoo.clients.adapters._columns import Column, Columns
from rewardzoo.clients.adapters._judge import Judge, Source
from rewardzoo.clients.scorer import OnError, Reward


def orm(
    source: Source,
    reward: Reward | None = None,
    *,
    images: Column = "images",
    prompts: Column = "messages",
    metadata: Column | Sequence[str] | None = None,
    on_error: OnError = "none",
    **options: Any,
) -> type:
    """Return a class for `orms`. The arguments are those of `trl.reward_function`."""
    judge = Judge(source, reward, on_error=on_error, **options)
    where = Columns(images, prompts, metadata)

    class ServedORM(_Base):
        def __call__(self, completions: Sequence[str], **columns: Any) -> list[float | None]:
            batch = where.of({"completions": completions, **columns})
            return judge.score(*batch).totals

    return _named(ServedORM, judge)


def async_orm(
    source: Source,
    reward: Reward | None = None,
    *,
    images: Column = "images",
    prompts: Column = "messages",
    metadata: Column | Sequence[str] | None = None,
    on_error: OnError = "none",
    **options: Any,
) -> type:
    """Return `orm` with an async `__call__`."""
    judge = Judge(source, reward, on_error=on_error, **options)
    where = Columns(images, prompts, metadata)

    class ServedAsyncORM(_Base):
        async def __call__(self, completions: Sequence[str], **columns: Any) -> list[float | None]:
            batch = where.of({"completions": completions, **columns})
            return (await judge.score_async(*batch)).totals

    return _named(ServedAsyncORM, judge)


class _Base:
    """What ms-swift's own base classes do; it asks for no more than that, and they would bring in torch."""

    def __init__(self, args: object = None, **_: object) -> None:
        self.args = args


def _named(made: type, judge: Judge) -> type:
    made.__name__ = judge.name  # under which ms-swift logs it
    return made
