"""TRL's `GRPOTrainer`, and the trainers that take its reward functions (RLOO, Online DPO, open-r1's).

    from rewardzoo.clients.adapters import trl

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[
            trl.reward_function("http://127.0.0.1:3000", "hpsv2:v2.1", images="image"),
            trl.async_reward_function("http://127.0.0.1:3000", "imagereward:v1.0", images="image"),
        ],
        rollout_func=rollout,  # {"prompt_ids", "completion_ids", "logprobs", "image": one a completion}
        ...
    )

TRL's policies write text, so images come as a column: of the dataset, or, when the policy makes them, of what
`rollout_func` returns beside the token ids: a list there, because TRL gives every row all of an array. Async
functions are awaited together, sync ones one after the other.

TRL calls `f(prompts=, completions=, completion_ids=, **columns)`, all lists of one a completion, and expects
one float or None each. None is its "could not score": NaN there, left out of the sum over functions, and
where no function has a score, out of the group's baseline. So None is what an item that cannot be scored gets
here, unless `on_error="raise"`. A server that is gone raises in any case: a run that goes on learns nothing.

Source: `trl/trainer/grpo_trainer.py`, `_calculate_rewards` (1.16).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import isnan
from typing import Any

from rewardzoo.clients.adapters._columns import Column, Columns
from rewardzoo.clients.adapters._judge import Judge, Scores, Source
from rewardzoo.clients.scorer import OnError, Reward

RewardFunction = Callable[..., list[float | None]]
AsyncRewardFunction = Callable[..., Awaitable[list[float | None]]]


def reward_function(
    source: Source,
    reward: Reward | None = None,
    *,
    images: Column = "image",
    prompts: Column = "prompts",
    metadata: Column | Sequence[str] | None = None,
    on_error: OnError = "none",
    name: str | None = None,
    **options: Any,
) -> RewardFunction:
    """Return a reward function for `reward_funcs`.

    `images` and `prompts` are names of columns, or functions of all of them: `images=lambda columns:
    [draw(text) for text in columns["completions"]]`. Of a conversation the prompt is what its last user's
    message says. `metadata` is a column of objects, or the names of columns to make them of. `reward`,
    `on_error` and `options` are as in `Judge`. `name` is what TRL logs it as; the rewards of a mixture, its
    held-out judges too, are logged beside it as `NAME/REWARD`.
    """
    judge = Judge(source, reward, on_error=on_error, **options)
    where = Columns(images, prompts, metadata)

    def score(**columns: Any) -> list[float | None]:
        return _logged(judge.score(*where.of(columns)), score.__name__, columns)

    score.__name__ = name or judge.name
    return score


def async_reward_function(
    source: Source,
    reward: Reward | None = None,
    *,
    images: Column = "image",
    prompts: Column = "prompts",
    metadata: Column | Sequence[str] | None = None,
    on_error: OnError = "none",
    name: str | None = None,
    **options: Any,
) -> AsyncRewardFunction:
    """Return `reward_function` as a coroutine function, which TRL awaits beside the others."""
    judge = Judge(source, reward, on_error=on_error, **options)
    where = Columns(images, prompts, metadata)

    # A coroutine function and no object with an async `__call__`, which TRL would not await.
    async def score(**columns: Any) -> list[float | None]:
        return _logged(await judge.score_async(*where.of(columns)), score.__name__, columns)

    score.__name__ = name or judge.name
    return score


def _logged(scores: Scores, name: str, columns: Mapping[str, Any]) -> list[float | None]:
    for part, values in scores.parts.items():
        known = [value for value in values if not isnan(value)]
        if known and "log_metric" in columns:
            columns["log_metric"](f"{name}/{part}", sum(known) / len(known))
    return scores.totals
