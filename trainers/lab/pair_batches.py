"""Batches of scene pairs for training, with what is where in each picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from rewardzoo.trainers.lab.pairs import corrupt
from rewardzoo.trainers.lab.prompts import prompt_of
from rewardzoo.trainers.lab.render import Placed, draw, place
from rewardzoo.trainers.lab.scene import COLORS, HELD_OUT, SHAPES, Scene, sample_scene

KINDS = [(color, shape) for color in COLORS for shape in SHAPES]
"""What an object can be; its place here is its class."""

ImageBatch = NDArray[np.uint8]


class Layouts(Protocol):
    """What is where in N pictures: `counts_of`, `centers_of` and `cells_of` each."""

    @property
    def counts(self) -> Tensor:
        """Objects of each kind (N, K)."""

    @property
    def centers(self) -> Tensor:
        """Their mean place in [0, 1], x and y, NaN where there are none (N, K, 2)."""

    @property
    def cells(self) -> Tensor:
        """The kind seen at the middle of each cell of a G x G grid, K where there is none (N, G * G)."""


@dataclass(frozen=True)
class Pairs:
    """P pairs of scenes one attribute apart; rows p and P + p of everything are a pair.

    `images` uint8 (2P, S, S, 3); `counts`, `centers` and `cells` as in `Layouts`.
    """

    images: ImageBatch
    prompts: list[str]
    counts: Tensor
    centers: Tensor
    cells: Tensor


class PairStream(IterableDataset[Pairs]):
    """In-domain pairs without end; neither scene of a pair has a combination kept for out-of-domain.

    Of the scenes that have a relation, `relations` is the share in which at least that is what differs: it
    is the hardest to learn. The others differ in any category.
    """

    def __init__(self, pairs: int, seed: int, size: int, grid: int, relations: float = 0.0) -> None:
        self.pairs = pairs
        self.seed = seed
        self.size = size
        self.grid = grid
        self.relations = relations

    def __iter__(self) -> Iterator[Pairs]:
        rng = np.random.default_rng(self.seed)
        while True:
            pairs = [_draw_pair(rng, self.relations) for _ in range(self.pairs)]
            scenes = [pair[side] for side in (0, 1) for pair in pairs]
            placed = [place(scene, rng) for scene in scenes]
            yield Pairs(
                np.stack([draw(objects, rng, self.size) for objects in placed]),
                [prompt_of(scene, "compositional", rng) for scene in scenes],
                torch.stack([counts_of(objects) for objects in placed]),
                torch.stack([centers_of(objects) for objects in placed]),
                torch.stack([cells_of(objects, self.grid) for objects in placed]),
            )


def _draw_pair(rng: np.random.Generator, relations: float) -> tuple[Scene, Scene]:
    while True:
        scene = sample_scene(rng, "in_domain")
        related = bool(relations and scene.relations) and rng.random() < relations
        other = corrupt(scene, rng, "relation" if related else None)
        if not HELD_OUT.intersection(other.combinations):
            return scene, other


def _kind(item: Placed) -> int:
    return KINDS.index((item.color, item.shape))


def counts_of(objects: Sequence[Placed]) -> Tensor:
    """Count the objects of each kind: int64 (K,)."""
    return torch.bincount(torch.tensor([_kind(o) for o in objects]), minlength=len(KINDS))


def centers_of(objects: Sequence[Placed]) -> Tensor:
    """Give the mean place of each kind, NaN where there are none: (K, 2)."""
    total = torch.zeros(len(KINDS), 2)
    for item in objects:
        total[_kind(item)] += torch.tensor([item.x, item.y])
    return total / counts_of(objects)[:, None]


def cells_of(objects: Sequence[Placed], grid: int) -> Tensor:
    """Give the kind that each cell shows (G * G,): that of the object its middle, or nearly, lies in."""
    middle = (torch.arange(grid) + 0.5) / grid
    cells = torch.full((grid, grid), len(KINDS))
    for item in objects:
        near = item.radius + 0.25 / grid
        inside = ((middle - item.y).abs() < near)[:, None] & ((middle - item.x).abs() < near)[None, :]
        cells[inside] = _kind(item)
    return cells.flatten()
