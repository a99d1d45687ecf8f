"""Batches of single pictures of the lab, for the training of the mini generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from rewardzoo.trainers.lab.pair_batches import cells_of, centers_of, counts_of
from rewardzoo.trainers.lab.render import draw, place
from rewardzoo.trainers.lab.scene import Scene, sample_scene

SIZE = 64
GRID = 8  # tokens a side
_NOISE = 6.0  # that of `render`


@dataclass(frozen=True)
class SceneImages:
    """B scenes and their pictures, uint8 (B, 3, S, S), as the lab draws them and the same without noise.

    `counts`, `centers` and `cells` as in `Layouts`.
    """

    scenes: list[Scene]
    noisy: Tensor
    clean: Tensor
    counts: Tensor
    centers: Tensor
    cells: Tensor


class SceneImageStream(IterableDataset[SceneImages]):
    """In-domain scenes without end, in batches."""

    def __init__(self, batch: int, seed: int) -> None:
        self.batch = batch
        self.seed = seed

    def __iter__(self) -> Iterator[SceneImages]:
        rng = np.random.default_rng(self.seed)
        while True:
            scenes, placed = [], []
            for _ in range(self.batch):
                scenes.append(sample_scene(rng))
                placed.append(place(scenes[-1], rng))
            clean = np.stack([draw(objects, rng, SIZE, noise=0) for objects in placed])
            noise = _NOISE * rng.standard_normal(clean.shape, dtype=np.float32)
            noisy = np.clip(clean + noise + 0.5, 0, 255).astype(np.uint8)
            yield SceneImages(
                scenes,
                to_channels(noisy),
                to_channels(clean),
                torch.stack([counts_of(objects) for objects in placed]),
                torch.stack([centers_of(objects) for objects in placed]),
                torch.stack([cells_of(objects, GRID) for objects in placed]),
            )


def to_channels(images: NDArray[np.uint8]) -> Tensor:
    """Turn uint8 (B, H, W, 3) into uint8 (B, 3, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)
