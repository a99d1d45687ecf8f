"""AdamW and its schedule, as a configuration has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from rewardzoo.trainers.config import OptimizerSection


def trained_of(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are to be trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def make_optimizer(
    config: OptimizerSection, trained: Sequence[nn.Parameter], steps: int
) -> tuple[AdamW, LambdaLR]:
    """Return the optimizer of what is trained, and the schedule of its rate over `steps`.

    Raises:
        ValueError: nothing is trained.
    """
    if not trained:
        raise ValueError("the policy has no parameter that is to be trained")
    optimizer = torch.optim.AdamW(
        trained, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
    # Of transformers' schedules, "constant" takes no notice of a warm-up.
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    schedule: LambdaLR = get_scheduler(
        name, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=steps
    )
    return optimizer, schedule
