"""The contract of a reward."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Self

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor, nn

from rewardzoo.errors import ItemError
from rewardzoo.rewards._batch import Batch, Each, Outcome, Part, Picture, Score, as_rgb, size_of, split
from rewardzoo.rewards._spec import RewardSpec, Variant

__all__ = ["Batch", "Outcome", "PairReward", "Part", "Picture", "RewardModel", "Score", "as_rgb"]


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

    def cost(self, width: int, height: int) -> int:
        """What an image of that size weighs in a batch, at least 1, in the unit of `spec.max_batch_cost`."""
        return 1

    def prepare_items(
        self,
        images: Sequence[Picture],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        *,
        each: Each = map,
    ) -> list[Part | ItemError]:
        """Prepare each item on the CPU. Thread-safe; one that cannot be prepared is an error in its place.

        Where `each` is a thread pool's map, items are prepared in parallel. `images[i]` is read once, by the
        thread that prepares it, so a sequence that decodes when it is indexed decodes in parallel too.

        Raises:
            ValueError: there is not one prompt, or not one metadata, an image.
        """
        notes = _checked(images, prompts, metadata)
        lock = Lock()
        distinct: dict[object, Any] = {}

        def one(i: int) -> tuple[object, Any] | ItemError:
            try:
                asked = self.prepare_prompt(prompts[i], notes[i])
                rgb = as_rgb(images[i])
                key = rgb.size, hashlib.blake2b(rgb.tobytes(), digest_size=16).digest()
            except Exception as error:
                return _item_error(error)
            with lock:
                if key in distinct:
                    return key, asked
                distinct[key] = None  # claimed: others of this image need not wait for it
            try:
                distinct[key] = self.prepare_image(rgb)
            except Exception as error:
                distinct[key] = _item_error(error)
            return key, asked

        found: list[Part | ItemError] = []
        for item in list(each(one, range(len(images)))):
            if isinstance(item, ItemError):
                found.append(item)
                continue
            image = distinct[item[0]]
            found.append(image if isinstance(image, ItemError) else Part(image, item[1]))
        return found

    def collate_parts(self, parts: Sequence[Part]) -> Batch:
        """Make a batch of prepared items, at least one. Thread-safe."""
        places: dict[int, int] = {}
        images: list[Any] = []
        for part in parts:
            if id(part.image) not in places:
                places[id(part.image)] = len(images)
                images.append(part.image)
        asked = [part.asked for part in parts]
        inputs = self.collate(images, [places[id(part.image)] for part in parts], asked)
        return Batch(len(parts), tuple(range(len(parts))), {}, inputs, asked)

    def prepare(
        self,
        images: Sequence[Picture],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Batch:
        """Make a batch on the CPU: `prepare_items` and `collate_parts`, errors kept by the item's place."""
        items = self.prepare_items(images, prompts, metadata)
        errors = {i: item for i, item in enumerate(items) if isinstance(item, ItemError)}
        parts = [item for item in items if isinstance(item, Part)]
        if not parts:
            return Batch(len(items), (), errors, {}, [])
        rows = tuple(i for i in range(len(items)) if i not in errors)
        return replace(self.collate_parts(parts), size=len(items), rows=rows, errors=errors)

    def stage(self, batch: Batch) -> Batch:
        """Begin to copy a batch to the device while another runs there. Thread-safe.

        On CUDA: from pinned memory and on a stream of its own. Elsewhere there is nothing to gain.
        """
        if self.device.type != "cuda":
            return batch
        return batch.copy_ahead(self._copies, self.dtype)

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[Outcome]:
        """Score a prepared batch; item errors stand in their places."""
        if not len(batch):
            return batch.scatter([])
        return batch.scatter([_finite(o) for o in self.evaluate(batch.to(self.device, self.dtype))])

    @cached_property
    def _copies(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def score_items(
        self,
        images: Sequence[Picture],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Outcome]:
        """Score any number of pairs, as many at a time as `spec` says; item errors stand in their places."""
        notes = _checked(images, prompts, metadata)
        out: list[Outcome] = []
        costs = [self.cost(*size_of(image)) for image in images]
        for part in split(costs, self.spec.max_batch, self.spec.max_batch_cost):
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

    def warm_up(self) -> None:
        """Score one grey picture, so that the first caller does not pay for what is set up at first use."""
        grey = np.full((512, 512, 3), 128, dtype=np.uint8)
        self.score_items([grey], ["a photo"])

    @property
    def nbytes(self) -> int:
        """Memory that the weights take."""
        tensors = [*self.net.parameters(), *self.net.buffers()]
        return sum(tensor.nbytes for tensor in tensors)

    def provenance(self) -> dict[str, str]:
        """What a score of this model rests on, to be kept beside it."""
        from rewardzoo import __version__

        converted = self.weights_sha256.get("converted")  # the safetensors made of a file of PyTorch's
        manifest = self.weights_sha256.get("manifest")  # of a variant that a user trained
        return {
            "reward": self.spec.name,
            "variant": self.variant.name,
            "recipe": self.variant.recipe,
            "weights_sha256": self.weights_sha256.get("checkpoint", ""),
            **({"converted_sha256": converted} if converted else {}),
            **({"manifest_sha256": manifest} if manifest else {}),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "pillow": PIL.__version__,  # it resizes: odd shapes differ between 12 and 13
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


def _finite(outcome: Outcome) -> Outcome:
    if isinstance(outcome, ItemError) or math.isfinite(outcome.value):
        return outcome
    return ItemError(f"the model returned {outcome.value} for this item: its weights or dtype overflow")


def _item_error(error: Exception) -> ItemError:
    return error if isinstance(error, ItemError) else ItemError(f"image not usable: {error}")


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
