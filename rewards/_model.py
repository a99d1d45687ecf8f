"""The contract of a reward."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from rewardzoo.errors import ItemError
from rewardzoo.rewards._spec import RewardSpec, Variant

Picture = Image.Image | NDArray[np.uint8]
"""One image: a PIL image, or uint8 RGB pixels (H, W, 3)."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one item got: its score and, where the reward has more to say, JSON values by name."""

    value: float
    details: Mapping[str, Any] = field(default_factory=dict)


Outcome = Score | ItemError


@dataclass(frozen=True)
class Batch:
    """Items ready for the device.

    `inputs` are the tensors that `RewardModel.collate` made of them and `asked` what
    `RewardModel.prepare_prompt` made of each item's prompt. `rows` are the items' places among the
    `size` that were asked for; `errors` has the others.
    """

    size: int
    rows: tuple[int, ...]
    errors: Mapping[int, ItemError]
    inputs: Mapping[str, Tensor]
    asked: Sequence[Any]

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Return the batch on `device`, its floats in `dtype`."""
        return replace(
            self,
            inputs={
                name: tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)
                for name, tensor in self.inputs.items()
            },
        )

    def scatter(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Put outcomes (one a row) and errors back in the order that was asked for."""
        found = dict(zip(self.rows, outcomes, strict=True))
        return [found[i] if i in found else self.errors[i] for i in range(self.size)]


class RewardModel(ABC):
    """A reward with its weights loaded: a score for each (image, prompt) pair.

    A score never depends on its neighbours in the batch, on padding or on the batch's size (1e-5 in
    float32). Subclasses live one a file in `rewards/` and give `load`, `prepare_image`, `collate` and
    `forward`; `PairReward` has `collate` for those that encode image and prompt apart.
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
    def prepare_image(self, image: Image.Image) -> Any:
        """Turn one RGB image into what `collate` takes: often pixels (C, H, W). Thread-safe.

        An image that occurs more than once in a batch is prepared once. Raises `ItemError` for one that
        cannot be scored.
        """

    def prepare_prompt(self, prompt: str, metadata: Mapping[str, Any]) -> Any:
        """Turn one item's prompt and metadata into what `collate` takes: here, the prompt. Thread-safe.

        Raises `ItemError` for what cannot be scored.
        """
        return prompt

    @abstractmethod
    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Make the tensors of B items. Thread-safe.

        `images` are the distinct images as prepared, `image_index` (B) which of them is whose, `asked` (B)
        what `prepare_prompt` made.
        """

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Score a batch's inputs on the device: (B,). Keeps the graph where the spec says differentiable."""

    def evaluate(self, batch: Batch) -> Sequence[Outcome]:
        """Score a batch that is on the device, one outcome a row.

        Rewards override it that have details to give, or items that the network can fail.
        """
        return [Score(value) for value in self.forward(batch.inputs).float().cpu().tolist()]

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

    def prepare(
        self,
        images: Sequence[Picture],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Batch:
        """Make a batch on the CPU. Thread-safe; an item that cannot be prepared becomes an error of its own.

        Raises:
            ValueError: there is not one prompt, or not one metadata, an image.
        """
        notes = _checked(images, prompts, metadata)
        places: dict[object, int] = {}
        prepared: list[Any] = []
        image_index, rows, asked = [], [], []
        errors: dict[int, ItemError] = {}
        for i, image in enumerate(images):
            try:
                question = self.prepare_prompt(prompts[i], notes[i])
                rgb = as_rgb(image)
                key = rgb.size, hashlib.blake2b(rgb.tobytes(), digest_size=16).digest()
                if key not in places:
                    prepared.append(self.prepare_image(rgb))
                    places[key] = len(prepared) - 1
            except ItemError as error:
                errors[i] = error
            except Exception as error:
                errors[i] = ItemError(f"image not usable: {error}")
            else:
                image_index.append(places[key])
                asked.append(question)
                rows.append(i)
        inputs = self.collate(prepared, image_index, asked) if rows else {}
        return Batch(len(images), tuple(rows), errors, inputs, asked)

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[Outcome]:
        """Score a prepared batch; item errors stand in their places."""
        if not len(batch):
            return batch.scatter([])
        return batch.scatter([_finite(o) for o in self.evaluate(batch.to(self.device, self.dtype))])

    def score_items(
        self,
        images: Sequence[Picture],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Outcome]:
        """Score any number of pairs, `spec.max_batch` at a time; item errors stand in their places."""
        notes = _checked(images, prompts, metadata)
        out: list[Outcome] = []
        for part in _parts(len(images), self.spec.max_batch):
            out += self.run(self.prepare(images[part], prompts[part], notes[part]))
        return out

    def score(
        self,
        images: Sequence[Picture],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[float]:
        """Score N pairs: N floats in the reward's raw scale. `metadata` is one mapping an item.

        Raises:
            ValueError: there is not one prompt, or not one metadata, an image.
            ItemError: a pair cannot be scored; the message names its index.
        """
        scores: list[float] = []
        for i, outcome in enumerate(self.score_items(images, prompts, metadata)):
            if isinstance(outcome, ItemError):
                raise ItemError(f"item {i}: {outcome}") from outcome
            scores.append(outcome.value)
        return scores

    def provenance(self) -> dict[str, str]:
        """What a score of this model rests on, to be kept beside it."""
        from rewardzoo import __version__

        converted = self.weights_sha256.get("converted")  # the safetensors made of a file of PyTorch's
        return {
            "reward": self.spec.name,
            "variant": self.variant.name,
            "recipe": self.variant.recipe,
            "weights_sha256": self.weights_sha256.get("checkpoint", ""),
            **({"converted_sha256": converted} if converted else {}),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "rewardzoo": __version__,
        }


class PairReward(RewardModel):
    """A reward that encodes image and prompt apart: equal prompts and equal images once a batch.

    `forward` gets `pixel_values`, one row a distinct image, the tensors of `prepare_text`, one row a
    distinct prompt, and `image_index` and `text_index` (B,), which say which of them is whose.
    """

    @abstractmethod
    def prepare_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Turn U distinct prompts into token tensors with U rows. Thread-safe."""

    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Stack the pixels and tokenise the distinct prompts."""
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(asked))}
        return {
            "pixel_values": torch.stack(list(images)),
            "image_index": torch.tensor(image_index),
            **self.prepare_text(list(distinct)),
            "text_index": torch.tensor([distinct[prompt] for prompt in asked]),
        }


def as_rgb(image: Picture) -> Image.Image:
    """Return `image` as a PIL RGB image.

    Raises:
        ItemError: pixels that are not uint8 (H, W, 3) with H, W > 0, or a PIL image of over 8 bits a channel.
    """
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise ItemError(f"a {image.mode} image has more than 8 bits a channel: scale it to 8 bits first")
        rgb = image.convert("RGB")
        rgb.info.pop("transparency", None)  # a palette's; `transformers` would paint that colour white
        return rgb
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ItemError(f"pixels must be uint8 (H, W, 3) with H, W > 0, got {image.dtype} {image.shape}")
    return Image.fromarray(image)


def _finite(outcome: Outcome) -> Outcome:
    if isinstance(outcome, ItemError) or math.isfinite(outcome.value):
        return outcome
    return ItemError(f"the model returned {outcome.value} for this item: its weights or dtype overflow")


def _parts(total: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, total, size))


def _checked(
    images: Sequence[Picture],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]] | None,
) -> Sequence[Mapping[str, Any]]:
    if len(images) != len(prompts):
        raise ValueError(f"one prompt an image, got {len(images)} images and {len(prompts)} prompts")
    if metadata is None:
        return [{}] * len(images)
    if len(images) != len(metadata):
        raise ValueError(f"one metadata an image, got {len(images)} images and {len(metadata)} metadata")
    return metadata
