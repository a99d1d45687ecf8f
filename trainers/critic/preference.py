"""The Bradley-Terry way: a reward learns that of two pictures of a prompt the better one scores higher."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def bradley_terry_loss(first: Tensor, second: Tensor, preference: Tensor, *, scale: float = 1.0) -> Tensor:
    """Cross-entropy (B,) of preferences (B,), the chance that the first is better, under scores (B,) each.

    The model's chance is sigmoid(scale * (first - second)): Bradley and Terry (1952), as ImageReward (arXiv
    2304.05977) and PickScore (arXiv 2305.01569) are trained. A tie is a preference of 0.5. `scale` is for
    rewards whose scores differ by little: a cosine needs about 100.
    """
    return F.binary_cross_entropy_with_logits(scale * (first - second), preference, reduction="none")
