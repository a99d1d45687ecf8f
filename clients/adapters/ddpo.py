"""DDPO: TRL's `DDPOTrainer` (up to 0.23), ddpo-pytorch, and trainers that took over their reward function.

    from rewardzoo.clients.adapters import ddpo

    reward = ddpo.reward_function("http://127.0.0.1:3000", "aesthetic")
    trainer = DDPOTrainer(config, reward, prompt_fn, pipeline)

For ddpo-pytorch, whose functions are found by name, put it into `ddpo_pytorch/rewards.py` and set
`config.reward_fn = "served"`:

    def served():
        return ddpo.reward_function("http://127.0.0.1:3000", "hpsv2:v2.1")

Both call `f(images, prompts, prompt_metadata)` with a tensor (N, 3, H, W) of floats in [0, 1], or an array
(N, H, W, 3) of uint8, and expect `(rewards, metadata)`. Neither has a value for "could not score", and a NaN
spoils the whole batch's advantages: so an item that cannot be scored raises, unless `on_error="nan"`.

Source: `trl/trainer/ddpo_trainer.py`, `compute_rewards`; `ddpo_pytorch/rewards.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rewardzoo.clients.adapters._columns import to_uint8
from rewardzoo.clients.adapters._judge import Judge, Source
from rewardzoo.clients.scorer import Reward

Rewards = tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]
RewardFunction = Callable[[Any, Sequence[str], Sequence[Any]], Rewards]


def reward_function(
    source: Source,
    reward: Reward | None = None,
    *,
    with_metadata: bool = False,
    on_error: Literal["raise", "nan"] = "raise",
    **options: Any,
) -> RewardFunction:
    """Return `f(images, prompts, prompt_metadata)`: float32 (N,), and the raw scores by reward of a mixture.

    Floats become uint8 as the trainers do it, see `to_uint8`. With `with_metadata` an item's metadata goes to
    the reward.
    """
    judge = Judge(source, reward, on_error=on_error, **options)

    def score(images: Any, prompts: Sequence[str], prompt_metadata: Sequence[Mapping[str, Any]]) -> Rewards:
        notes = list(prompt_metadata) if with_metadata else None
        scores = judge.score(to_uint8(images), prompts, notes)
        parts = {name: np.array(values, dtype=np.float32) for name, values in scores.parts.items()}
        return np.array(scores.totals, dtype=np.float32), parts

    return score
