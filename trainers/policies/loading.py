"""From a configuration's `policy` to a policy that is ready to be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rewardzoo.trainers.policies.janus import JanusPolicy
from rewardzoo.trainers.policies.lora import LoRA

if TYPE_CHECKING:
    from rewardzoo.trainers.config import PolicySection

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_policy(section: PolicySection) -> JanusPolicy:
    """Load the generator, with its dtype, frozen parts and adapters as the section says.

    Raises:
        WeightsError: it cannot be read.
    """
    dtype = _DTYPES[section.dtype]
    policy = JanusPolicy.load(
        section.name_or_path, dtype=dtype, attention=section.attention, train_head=section.train_head
    )
    if section.lora is not None:
        policy.adapt(LoRA(section.lora.rank, section.lora.alpha, section.lora.targets))
    if section.gradient_checkpointing:
        policy.gradient_checkpointing()
    return policy
