"""Pictures that are not finished yet, for critics that judge them."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewardzoo.trainers.policies.policy import ARImagePolicy

_GREY = 128


def decode_partial(policy: ARImagePolicy, tokens: Tensor, count: int) -> NDArray[np.uint8]:
    """Decode the first `count` of N tokens, (B, N) or (B, count): uint8 (B, H, W, 3), grey where none is yet.

    Tokens stand in rows from the top left. What is missing is decoded as the last token that is there, so
    that the edge looks as little unlike a picture as can be, and painted over.

    Raises:
        ValueError: `count` is not in [1, N], or N tokens are no square.
    """
    total = policy.tokens_per_image
    side = math.isqrt(total)
    if not 1 <= count <= total or side * side != total:
        raise ValueError(f"count must be in [1, {total}], a square number of tokens; got {count}")
    known = tokens[:, :count]
    pictures = policy.decode(_filled(known, total))
    if count == total:
        return pictures
    height, width = (size // side for size in pictures.shape[1:3])
    missing = (np.arange(total) >= count).reshape(side, side)
    pictures[:, missing.repeat(height, 0).repeat(width, 1)] = _GREY
    return pictures


def _filled(known: Tensor, total: int) -> Tensor:
    rest = known[:, -1:].expand(-1, total - known.shape[1])
    return torch.cat([known, rest], 1)
