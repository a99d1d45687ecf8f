"""Sample grids: pictures of a policy in one, each over its prompt and scores."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_MARGIN = 8
_SIDE = 192
"""Pictures smaller than this are enlarged to it, without smoothing."""
_LARGEST = 384


@dataclass(frozen=True)
class Sample:
    """A picture, uint8 (H, W, 3), its prompt and what was said of it, one line each."""

    image: NDArray[np.uint8]
    prompt: str
    notes: Sequence[str] = ()


def draw_grid(samples: Sequence[Sample], columns: int = 4) -> Image.Image:
    """Draw samples row by row, all at the size of the first.

    Raises:
        ValueError: there are none.
    """
    if not samples:
        raise ValueError("a grid needs at least one sample")
    font = ImageFont.load_default()
    height, width = samples[0].image.shape[:2]
    scale = max(1, -(-_SIDE // width)) if width < _SIDE else min(1.0, _LARGEST / width)
    size = (round(width * scale), round(height * scale))
    letters = max(8, size[0] // 6)
    texts = ["\n".join([*textwrap.wrap(s.prompt, letters), *s.notes]) for s in samples]
    line = int(font.getbbox("Ag")[3]) + 4
    below = line * max(text.count("\n") + 1 for text in texts) + _MARGIN
    columns = min(columns, len(samples))
    rows = -(-len(samples) // columns)
    cell = (size[0] + _MARGIN, size[1] + below + _MARGIN)
    grid = Image.new("RGB", (cell[0] * columns + _MARGIN, cell[1] * rows + _MARGIN), "white")
    draw = ImageDraw.Draw(grid)
    for at, (sample, text) in enumerate(zip(samples, texts, strict=True)):
        x, y = _MARGIN + cell[0] * (at % columns), _MARGIN + cell[1] * (at // columns)
        resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        grid.paste(Image.fromarray(sample.image).resize(size, resample), (x, y))
        draw.multiline_text((x, y + size[1] + 2), text, fill="black", font=font, spacing=4)
    return grid
