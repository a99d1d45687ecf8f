"""The resize that a reward begins with, in PIL alone, so that a caller can do it as the model does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import PIL
from PIL import Image

PILLOW = ".".join(PIL.__version__.split(".")[:2])
"""The release of Pillow in this process, e.g. "13.0"; another may resize otherwise."""


@dataclass(frozen=True)
class ShortestAndCrop:
    """Bicubic resize of the shortest side to `size`, then the central square, on bytes.

    torchvision's `Resize(size, BICUBIC)` and `CenterCrop(size)` on PIL images, truncation and all. Where
    the square cannot lie in the very middle, torchvision rounds its corner to the even pixel;
    `transformers`' PIL processors round it down, as `round_corner=False` does.

    A square of `size` it leaves as it is: done twice, it is done once.
    """

    size: int
    round_corner: bool = True

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the square of an RGB image."""
        size = self.size
        width, height = image.size
        if width <= height:
            width, height = size, int(size * height / width)
        else:
            width, height = int(size * width / height), size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) / 2, (height - size) / 2
        left, top = (round(left), round(top)) if self.round_corner else (int(left), int(top))
        return image.crop((left, top, left + size, top + size))

    def __str__(self) -> str:
        """Return the step as a server tells it, the release of Pillow that takes it included."""
        corner = "rounded" if self.round_corner else "floored"
        return f"bicubic shortest {self.size}, crop {corner}, Pillow {PILLOW}"

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Return the step that `text` tells, whatever its Pillow; None where it is none of this kind."""
        form = r"bicubic shortest ([1-9]\d{0,4}), crop (rounded|floored), Pillow .+"
        found = re.fullmatch(form, text, re.ASCII)
        return None if found is None else cls(int(found[1]), found[2] == "rounded")
