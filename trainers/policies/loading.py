"""From a configuration's `policy` to a policy that is ready to be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardzoo.trainers.policies.policy import ARImagePolicy

if TYPE_CHECKING:
    from rewardzoo.trainers.config import PolicySection


def load_policy(section: PolicySection) -> ARImagePolicy:
    """Load the generator, with its adapters, dtype and frozen parts as the section says."""
    import torch
    from rewardzoo.trainers.policies.janus import JanusPolicy

    policy = JanusPolicy.load(section.name_or_path)
    return policy.to(getattr(torch, section.dtype))
