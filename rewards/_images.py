"""Preprocessing shared by rewards, each step as the upstream models were trained with it.

Parity needs PIL's own resampling on bytes, or bicubic on float tensors, exactly where upstream has one or
the other: they differ by a grey level or two, which moves scores.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel statistics of OpenAI's CLIP, in [0, 1]; BLIP and open_clip's LAION models use them too."""


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as float32 (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)


def normalize(pixels: Tensor) -> Tensor:
    """Apply CLIP's channel statistics to (…, 3, H, W) in [0, 1]."""
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    return (pixels - mean) / std


def resize_longest_and_pad(pixels: Tensor, size: int, *, antialias: bool) -> Tensor:
    """Bicubic resize of the longest side to `size` and zero padding to a square, on floats (3, H, W)."""
    height, width = pixels.shape[1:]
    scale = size / max(height, width)
    if scale != 1:
        height, width = round(height * scale), round(width * scale)
        pixels = F.interpolate(
            pixels[None], size=(max(height, 1), max(width, 1)), mode="bicubic", antialias=antialias
        )[0]
    height, width = pixels.shape[1:]
    down, right = size - height, size - width
    return F.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))
