"""Trains a tiny policy in a process of its own: `python -m tests.trainers.driver CONFIG [key=value…]`."""

from __future__ import annotations

import sys

import torch

from rewardzoo.trainers.config import load_config
from rewardzoo.trainers.grpo import GRPOConfig, train
from rewardzoo.trainers.rewards import RewardsLostError

from .tiny_policy import TinyPolicy

if __name__ == "__main__":
    torch.set_num_threads(1)
    config = load_config(GRPOConfig, sys.argv[1], sys.argv[2:])
    try:
        sys.exit(train(config, TinyPolicy()))
    except RewardsLostError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
