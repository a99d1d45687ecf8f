"""Trains a tiny policy in a process of its own: `python -m tests.trainers.driver CONFIG [key=value…]`.

With `LOST_BY` and `LOST_AT` in the environment the process of that rank gets no more rewards from that step.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from rewardzoo.clients import Scorer
from rewardzoo.clients.transport import Part, Reply, Transport
from rewardzoo.errors import UnavailableError
from rewardzoo.trainers.config import load_config
from rewardzoo.trainers.grpo import GRPOConfig, train
from rewardzoo.trainers.rewards import Rewards, RewardsLostError

from .tiny_policy import TinyPolicy


class Unreliable(Transport):
    """Scores by brightness, one part a step, until it is lost."""

    def __init__(self, until: float) -> None:
        self.until, self.asked = until, 0

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        self.asked += 1
        if self.asked >= self.until:
            raise UnavailableError("gone from here")
        return Reply([float(image.mean()) for image in part.payloads])


def connect(self: Rewards, names: Sequence[str]) -> Scorer:
    lost = os.environ["LOST_BY"] == os.environ.get("RANK", "0")
    return Scorer(
        Unreliable(float(os.environ["LOST_AT"]) if lost else float("inf")), timeout=9, max_in_flight=1
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    config = load_config(GRPOConfig, sys.argv[1], sys.argv[2:])
    if "LOST_BY" in os.environ:
        Rewards._connect = connect
    try:
        sys.exit(train(config, TinyPolicy()))
    except RewardsLostError as error:
        print(f"{error}\nprocess ends with {error.exit_code}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
