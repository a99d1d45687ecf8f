"""What a reward is given and what it answers: pictures, prepared items, batches, scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rewardzoo.errors import ItemError

Picture = Image.Image | NDArray[np.uint8]
"""One image: a PIL image, or uint8 RGB pixels (H, W, 3)."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Score:
    """What one item got: its score and, where the reward has more to say, JSON values by name."""

    value: float
    details: Mapping[str, Any] = field(default_factory=dict)


Outcome = Score | ItemError


class Each(Protocol):
    """Calls a function with each element, as `map` does, perhaps in several threads; keeps the order."""

    def __call__(self, fn: Callable[[int], T], items: Sequence[int], /) -> Iterable[T]:
        """Return what each call returned."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One item, prepared: its image, the same object for items of equal images, and what it asks."""

    image: Any
    asked: Any


@dataclass(frozen=True)
class Batch:
    """Items ready for the device.

    `inputs` are the tensors that `RewardModel.collate` made of them and `asked` what
    `RewardModel.prepare_prompt` made of each item's prompt. `rows` are the items' places among the
    `size` that were asked for; `errors` has the others. `copied` is there once the inputs are being
    copied to a CUDA device: the event behind the copy.
    """

    size: int
    rows: tuple[int, ...]
    errors: Mapping[int, ItemError]
    inputs: Mapping[str, Tensor]
    asked: Sequence[Any]
    copied: torch.cuda.Event | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Return the batch on `device`, its floats in `dtype`, for use in this thread's CUDA stream."""
        if self.copied is not None:
            here = torch.cuda.current_stream(device)
            here.wait_event(self.copied)
            for tensor in self.inputs.values():
                tensor.record_stream(here)  # else the copying stream could reuse its memory too early
            return replace(self, copied=None)
        moved = {k: t.to(device, _dtype(t, dtype), non_blocking=True) for k, t in self.inputs.items()}
        return replace(self, inputs=moved)

    def copy_ahead(self, stream: torch.cuda.Stream, dtype: torch.dtype) -> Batch:
        """Begin to copy the inputs to the stream's CUDA device; `to` waits for it there."""
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            inputs = {}
            for name, tensor in self.inputs.items():
                # Cast first: a copy is asynchronous only from pinned memory and to the same dtype.
                pinned = tensor.to(_dtype(tensor, dtype)).pin_memory()
                inputs[name] = pinned.to(stream.device, non_blocking=True)
            copied.record(stream)
        return replace(self, inputs=inputs, copied=copied)

    def scatter(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Put outcomes (one a row) and errors back in the order that was asked for."""
        found = dict(zip(self.rows, outcomes, strict=True))
        return [found[i] if i in found else self.errors[i] for i in range(self.size)]


def _dtype(tensor: Tensor, floats: torch.dtype) -> torch.dtype:
    return floats if tensor.is_floating_point() else tensor.dtype


def split(costs: Sequence[int], max_items: int, max_cost: int | None) -> list[slice]:
    """Cut items into consecutive batches of at most `max_items` and `max_cost`; a batch has one at least."""
    if not costs:
        return []
    cuts, total = [0], 0
    for i, cost in enumerate(costs):
        full = i - cuts[-1] == max_items or (max_cost is not None and total + cost > max_cost)
        if full and i > cuts[-1]:
            cuts.append(i)
            total = 0
        total += cost
    return [slice(*ends) for ends in zip(cuts, [*cuts[1:], len(costs)], strict=True)]


def size_of(image: Picture) -> tuple[int, int]:
    """Width and height, at least 1 each: what `as_rgb` refuses has a size too."""
    if isinstance(image, Image.Image):
        return image.size
    return (max(1, image.shape[1]), max(1, image.shape[0])) if image.ndim == 3 else (1, 1)


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
