"""The contract of a reward."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from rewardzoo.errors import ItemError
from rewardzoo.rewards._spec import RewardSpec, Variant

Picture = Image.Image | NDArray[np.uint8]
"""One image: a PIL image, or uint8 RGB pixels (H, W, 3)."""


@dataclass(frozen=True)
class Batch:
    """Items ready for the device.

    `pixels` holds one row an item that could be prepared, `text` one row a distinct prompt, and
    `text_index` (B,) says which prompt is whose: a prompt repeated in a batch is encoded once.
    `rows` are the items' places among the `size` that were asked for; `errors` has the others.
    """

    size: int
    rows: tuple[int, ...]
    errors: Mapping[int, ItemError]
    pixels: Mapping[str, Tensor]
    text: Mapping[str, Tensor]
    text_index: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Return the batch on `device`, its pixels in `dtype`."""
        return replace(
            self,
            pixels={k: t.to(device, dtype, non_blocking=True) for k, t in self.pixels.items()},
            text={k: t.to(device, non_blocking=True) for k, t in self.text.items()},
            text_index=self.text_index.to(device, non_blocking=True),
        )

    def scatter(self, scores: Sequence[float]) -> list[float | ItemError]:
        """Put scores (one a row) and errors back in the order that was asked for."""
        out: list[float | ItemError] = [self.errors.get(i, ItemError("not scored")) for i in range(self.size)]
        for row, score in zip(self.rows, scores, strict=True):
            out[row] = (
                float(score)
                if math.isfinite(score)
                else ItemError(f"the model returned {score} for this item: its weights or dtype overflow")
            )
        return out


class RewardModel(ABC):
    """A reward with its weights loaded: a score for each (image, prompt) pair.

    A score never depends on its neighbours in the batch, on padding or on the batch's size (1e-5 in
    float32). Subclasses give the three abstract methods and `load`; they live one a file in `rewards/`.
    """

    spec: ClassVar[RewardSpec]

    def __init__(self, variant: Variant, net: nn.Module) -> None:
        self.variant = variant
        self.net = net.eval().requires_grad_(False)
        self.weights_sha256: dict[str, str] = {}

    @classmethod
    @abstractmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        """Build the architecture and read its weights; `files` are the variant's, on disk."""

    @abstractmethod
    def prepare_image(self, image: Image.Image) -> Tensor:
        """Turn one RGB image into the pixels (C, H, W) the model takes. Thread-safe."""

    @abstractmethod
    def prepare_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Turn U prompts into token tensors with U rows. Thread-safe."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Score a batch on the device: (B,) float32. Keeps the graph where the spec says differentiable."""

    @property
    def name(self) -> str:
        """The full name, `reward:variant`."""
        return f"{self.spec.name}:{self.variant.name}"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are held in."""
        return next(self.net.parameters()).dtype

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Self:
        """Move the weights to `device`, and to `dtype` where one is given."""
        self.net.to(device, dtype)
        return self

    def prepare(self, images: Sequence[Picture], prompts: Sequence[str]) -> Batch:
        """Make a batch on the CPU. Thread-safe; an item that cannot be prepared becomes an error of its own.

        Raises:
            ValueError: there is not one prompt an image.
        """
        _check_lengths(images, prompts)
        pixels: list[Tensor] = []
        rows: list[int] = []
        errors: dict[int, ItemError] = {}
        for i, image in enumerate(images):
            try:
                pixels.append(self.prepare_image(as_rgb(image)))
                rows.append(i)
            except Exception as error:
                errors[i] = error if isinstance(error, ItemError) else ItemError(f"image not usable: {error}")
        distinct = {p: i for i, p in enumerate(dict.fromkeys(prompts[r] for r in rows))}
        return Batch(
            size=len(images),
            rows=tuple(rows),
            errors=errors,
            pixels={"pixel_values": torch.stack(pixels)} if pixels else {},
            text=self.prepare_text(list(distinct)) if distinct else {},
            text_index=torch.tensor([distinct[prompts[r]] for r in rows], dtype=torch.long),
        )

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[float | ItemError]:
        """Score a prepared batch; item errors stand in their places."""
        if not len(batch):
            return batch.scatter([])
        return batch.scatter(self.forward(batch.to(self.device, self.dtype)).float().cpu().tolist())

    def score_items(self, images: Sequence[Picture], prompts: Sequence[str]) -> list[float | ItemError]:
        """Score any number of pairs, `spec.max_batch` at a time; item errors stand in their places."""
        _check_lengths(images, prompts)
        out: list[float | ItemError] = []
        for start in range(0, len(images), self.spec.max_batch):
            part = slice(start, start + self.spec.max_batch)
            out += self.run(self.prepare(images[part], prompts[part]))
        return out

    def score(self, images: Sequence[Picture], prompts: Sequence[str]) -> list[float]:
        """Score N pairs: N floats in the reward's raw scale.

        Raises:
            ValueError: there is not one prompt an image.
            ItemError: a pair cannot be scored; the message names its index.
        """
        scores: list[float] = []
        for i, score in enumerate(self.score_items(images, prompts)):
            if isinstance(score, ItemError):
                raise ItemError(f"item {i}: {score}") from score
            scores.append(score)
        return scores

    def provenance(self) -> dict[str, str]:
        """What a score of this model rests on, to be kept beside it."""
        from rewardzoo import __version__

        return {
            "reward": self.spec.name,
            "variant": self.variant.name,
            "recipe": self.variant.recipe,
            "weights_sha256": self.weights_sha256.get("checkpoint", ""),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "rewardzoo": __version__,
        }


def _check_lengths(images: Sequence[Picture], prompts: Sequence[str]) -> None:
    if len(images) != len(prompts):
        raise ValueError(f"one prompt an image, got {len(images)} images and {len(prompts)} prompts")


def as_rgb(image: Picture) -> Image.Image:
    """Return `image` as a PIL RGB image.

    Raises:
        ItemError: pixels that are not uint8 (H, W, 3) with H, W > 0.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ItemError(f"pixels must be uint8 (H, W, 3) with H, W > 0, got {image.dtype} {image.shape}")
    return Image.fromarray(image)
