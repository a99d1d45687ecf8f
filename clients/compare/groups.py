"""What a data set is made of, whatever format it comes in: prompts, images, and which are preferred."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FIRST, TIE, SECOND = 1, 0, -1
"""Labels of a pair: which of its two images people prefer."""


@dataclass(frozen=True, slots=True)
class Group:
    """Images of one prompt, and the pairs of them that were judged.

    `images` are references that `images.ImageReader` opens; no pixel is in memory. `pairs` are
    `(i, j, label)` with indices into `images`. `ratings` has one number an image where people rated images
    alone. `split` is, for instance, "in_domain". `metadata` is what rewards are told of each image.
    Groups of one `prompt_id` belong together: the bootstrap draws them as one.
    """

    prompt_id: str
    prompt: str
    images: tuple[str, ...]
    pairs: tuple[tuple[int, int, int], ...] = ()
    categories: tuple[str, ...] = ()
    split: str = ""
    ratings: tuple[float, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
