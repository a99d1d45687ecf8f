"""How vision-language models see an image: its preprocessing, its number of tokens, its features.

Preprocessing is the PIL backend of `transformers`' processors; the torchvision one differs by a grey level.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rewardzoo.errors import ItemError

_MOST_ELONGATED = 200
TileUse = Literal["anyres", "pad", "frames"]
"""What LLaVA-OneVision is shown: the whole and tiles in full resolution ("anyres"); the whole alone, padded
to a square ("pad"); or the whole and its tiles as the frames of a video, pooled two by two ("frames")."""


class QwenImages:
    """Qwen2-VL and Qwen2.5-VL: one grid of patches an image, as large as the image itself."""

    token = "<|image_pad|>"
    mark = "<|vision_start|><|image_pad|><|vision_end|>"

    def __init__(self, processor: Any, pixels: tuple[int, int] | None = None) -> None:
        self.processor = processor
        if pixels is not None:
            processor.size = type(processor.size)(shortest_edge=pixels[0], longest_edge=pixels[1])

    @classmethod
    def from_folder(cls, folder: Path, pixels: tuple[int, int] | None = None) -> Self:
        """Read `preprocessor_config.json`; `pixels` are the least and the most of them in an image."""
        from transformers import Qwen2VLImageProcessorPil

        return cls(Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True), pixels)

    def prepare(self, image: Image.Image) -> dict[str, Tensor]:
        """Patches `pixel_values` (P, patch) and `image_grid_thw` (3,) of one RGB image.

        Raises:
            ItemError: one side is more than 200 times the other.
        """
        resized = image.resize(self._size(*image.size), Image.Resampling.BICUBIC)
        found = self.processor(images=[resized], do_resize=False, return_tensors="pt")
        return {"pixel_values": found["pixel_values"], "image_grid_thw": found["image_grid_thw"][0]}

    def count(self, image: Mapping[str, Tensor]) -> int:
        """How many tokens a prepared image takes."""
        return int(image["image_grid_thw"].prod()) // int(self.processor.merge_size) ** 2

    def count_of(self, width: int, height: int) -> int:
        """How many tokens an image of that size will take.

        Raises:
            ItemError: as `prepare`.
        """
        wide, high = self._size(width, height)
        return wide * high // self._unit**2

    def stack(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of U prepared images: patches one after the other, and grids (U, 3)."""
        return {
            "pixel_values": torch.cat([image["pixel_values"] for image in images]),
            "image_grid_thw": torch.stack([image["image_grid_thw"] for image in images]),
        }

    @property
    def _unit(self) -> int:
        return int(self.processor.patch_size * self.processor.merge_size)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        bounds = self.processor.size
        return qwen_size(width, height, self._unit, bounds["shortest_edge"], bounds["longest_edge"])

    def encode(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features of the images, one after the other: (tokens, D)."""
        found = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        return cast(Tensor, found.pooler_output)


def qwen_size(width: int, height: int, unit: int, least: int, most: int) -> tuple[int, int]:
    """Width and height, multiples of `unit`, with `least` to `most` pixels and about the same shape.

    `qwen_vl_utils.smart_resize`, with which Qwen and all rewards on it are run. The processor of
    `transformers` differs from it where a side is shorter than half a unit: it enlarges the whole image.

    Raises:
        ItemError: one side is more than 200 times the other.
    """
    ratio = max(width, height) / min(width, height)
    if ratio > _MOST_ELONGATED:
        raise ItemError(
            f"image not usable: its aspect ratio must be smaller than {_MOST_ELONGATED}, got {ratio:g}"
        )
    wide, high = (max(unit, round(side / unit) * unit) for side in (width, height))
    if wide * high > most:
        shrink = math.sqrt(width * height / most)
        wide, high = (max(unit, math.floor(side / shrink / unit) * unit) for side in (width, height))
    elif wide * high < least:
        grow = math.sqrt(least / (width * height))
        wide, high = (math.ceil(side * grow / unit) * unit for side in (width, height))
    return wide, high


class LlavaImages:
    """LLaVA-OneVision: square tiles through SigLIP, unpadded, with a newline token after each row."""

    token = "<image>"
    mark = "<image>"

    def __init__(self, processor: Any, model: Any, tiles: TileUse = "anyres") -> None:
        self.processor = processor
        self.tiles = tiles
        self.ratio: str = model.config.vision_aspect_ratio
        self.side: int = model.config.vision_config.image_size
        self.patches = self.side // model.config.vision_config.patch_size
        self.core = model.model  # for its packing, which has no weights

    def tile(self, pinpoints: Sequence[Sequence[int]], ratio: str) -> None:
        """Set the sizes (height, width) that tiles may cover, and how many are kept: "anyres_max_9"."""
        self.ratio = ratio
        self.processor.image_grid_pinpoints = self.core.config.image_grid_pinpoints = [*map(list, pinpoints)]

    @classmethod
    def from_folder(cls, folder: Path, model: Any, tiles: TileUse = "anyres") -> Self:
        """Read `preprocessor_config.json`."""
        from transformers import LlavaOnevisionImageProcessorPil

        return cls(
            LlavaOnevisionImageProcessorPil.from_pretrained(folder, local_files_only=True), model, tiles
        )

    def prepare(self, image: Image.Image) -> dict[str, Tensor]:
        """Tiles `pixel_values` (T, 3, S, S), the whole image first, and `image_sizes` (2,): height, width."""
        size = torch.tensor([image.height, image.width])
        if self.tiles == "pad":
            square = pad_to_square(image, tuple(int(255 * x) for x in self.processor.image_mean))
            square = square.resize((self.side, self.side), Image.Resampling.BICUBIC)
            pixels = self.processor.rescale(
                np.array(square).transpose(2, 0, 1), self.processor.rescale_factor
            )
            pixels = self.processor.normalize(pixels, self.processor.image_mean, self.processor.image_std)
            return {"pixel_values": torch.from_numpy(np.array(pixels))[None].float(), "image_sizes": size}
        found = self.processor(images=[image], return_tensors="pt")
        return {"pixel_values": found["pixel_values"][0], "image_sizes": size}

    def count(self, image: Mapping[str, Tensor]) -> int:
        """How many tokens a prepared image takes."""
        return self._count(len(image["pixel_values"]), image["image_sizes"])

    def count_of(self, width: int, height: int) -> int:
        """How many tokens an image of that size will take."""
        from transformers.image_processing_utils import select_best_resolution

        size = (height, width)
        tiles = 1
        if self.tiles != "pad":
            best = select_best_resolution(size, self.processor.image_grid_pinpoints)
            tiles += math.prod(side // self.side for side in best)
        return self._count(tiles, torch.tensor(size))

    def stack(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of U prepared images: tiles one after the other, `tiles` (U,), sizes (U, 2)."""
        return {
            "pixel_values": torch.cat([image["pixel_values"] for image in images]),
            "image_sizes": torch.stack([image["image_sizes"] for image in images]),
            "tiles": torch.tensor([len(image["pixel_values"]) for image in images]),
        }

    def encode(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features of the images, one after the other: (tokens, D)."""
        core = model.model
        layer: int = core.config.vision_feature_layer
        seen = core.vision_tower(inputs["pixel_values"], output_hidden_states=layer)
        patches = core.multi_modal_projector(seen.hidden_states[layer])
        each = zip(patches.split(inputs["tiles"].tolist()), inputs["image_sizes"], strict=True)
        return torch.cat([self._pack(tiles, size, core.image_newline) for tiles, size in each])

    def _count(self, tiles: int, size: Tensor) -> int:
        empty = torch.empty(tiles, self.patches**2, 1, device="meta")
        return len(self._pack(empty, size, torch.empty(1, device="meta")))

    def _pack(self, tiles: Tensor, size: Tensor, newline: Tensor) -> Tensor:
        if self.tiles == "frames":
            return torch.cat([self.core.apply_pooling(tiles).flatten(0, 1), newline[None]])
        packed, _ = self.core.pack_image_features([tiles], size[None].tolist(), newline, self.ratio)
        return cast(Tensor, packed[0])


def pinpoints_of(given: str | Sequence[Sequence[int]], side: int) -> list[tuple[int, int]]:
    """Read LLaVA-NeXT's `image_grid_pinpoints`: sizes (height, width) for `LlavaImages.tile`.

    Upstream has pairs (width, height), or a span of them in tiles: "(1x1),...,(6x6)".
    """
    if isinstance(given, str):
        (left, top), *_, (right, bottom) = (map(int, pair) for pair in re.findall(r"\((\d+)x(\d+)\)", given))
        return [
            (high * side, wide * side) for wide in range(left, right + 1) for high in range(top, bottom + 1)
        ]
    return [(high, wide) for wide, high in given]


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Centre an RGB image on a square of one colour, as LLaVA's `expand2square` does."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
