"""Generators that trainers can sample from and teach: what they ask of one, whichever model it is."""

from __future__ import annotations

from rewardzoo.trainers.policies.janus import JanusPolicy
from rewardzoo.trainers.policies.lora import LoRA
from rewardzoo.trainers.policies.policy import (
    ARImagePolicy,
    Drawing,
    LogpMode,
    PromptBatch,
    Rollout,
    Sampling,
    TokenLogprobs,
)

__all__ = [
    "ARImagePolicy",
    "Drawing",
    "JanusPolicy",
    "LoRA",
    "LogpMode",
    "PromptBatch",
    "Rollout",
    "Sampling",
    "TokenLogprobs",
]
