"""A reward that needs no server, and DPO on it: `python -m tests.trainers.redness CONFIG [key=value…]`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rewardzoo.errors import ItemError
from rewardzoo.local import LocalRewards
from rewardzoo.trainers.config import load_config
from rewardzoo.trainers.dpo import DPOConfig, train
from rewardzoo.trainers.lab.exact_reward import Truth
from rewardzoo.trainers.rewards import Rewards

from .tiny_policy import COLORS, TinyPolicy


class Redness:
    """The share of a picture that is red; fails where it is asked to."""

    name = "redness"

    def __init__(self) -> None:
        self.fails: Callable[[NDArray[np.uint8]], bool] = lambda image: False

    def score_items(
        self,
        images: Sequence[NDArray[np.uint8]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> list[Truth | ItemError]:
        return [
            ItemError("no") if self.fails(i) else Truth(float((i == COLORS[0]).all(-1).mean()))
            for i in images
        ]

    def provenance(self) -> Mapping[str, Any]:
        return {"reward": self.name}


if __name__ == "__main__":
    torch.set_num_threads(1)
    Rewards._connect = lambda self, names: LocalRewards.of([Redness()])  # type: ignore[method-assign]
    sys.exit(train(load_config(DPOConfig, sys.argv[1], sys.argv[2:]), TinyPolicy()))
