"""Trains a tiny policy whose critic is refreshed, versions being copied from the folder MADE.

python -m tests.trainers.critic.refresh_driver MADE CONFIG [key=value…]
"""

from __future__ import annotations

import sys

import torch

from rewardzoo.trainers.config import load_config
from rewardzoo.trainers.critic import refresh
from rewardzoo.trainers.grpo import GRPOConfig, train

from ..tiny_policy import TinyPolicy  # noqa: TID252
from .test_refresh import COPY

if __name__ == "__main__":
    torch.set_num_threads(1)
    made, config, *overrides = sys.argv[1:]
    refresh._command = lambda settings: [sys.executable, "-c", COPY, str(settings), made]
    sys.exit(train(load_config(GRPOConfig, config, overrides), TinyPolicy()))
