"""Pictures of scenes, with everything a prompt leaves open drawn at random.

A scene is placed first (`place`, in units of the picture) and drawn then (`draw`, in pixels).
Relation k splits the picture along its axis into a region for entity k and one for all that follow,
so every relation holds and entities never meet. Inside its region an entity's objects stand in
separate cells of a grid, so placing never has to try again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from rewardzoo.trainers.lab.scene import SHAPES, Entity, Scene

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 175, 60),
    "blue": (40, 60, 225),
    "yellow": (235, 210, 40),
    "purple": (180, 40, 195),
    "cyan": (30, 205, 210),
}
"""The mean color of each name, RGB; one object varies around it by `COLOR_JITTER` grey levels."""

COLOR_JITTER = 12
MIN_SIZE = 32

_BORDER = 1 / 64
_GAP = 3 / 64
_LARGEST = 22 / 64
_SIZE_SPREAD = 0.75
_ARM = 0.36
_GREY = (30, 225)
_TINT = 5
_GRADIENT = 12


@dataclass(frozen=True)
class Placed:
    """An object in a picture: its center and half its width, as shares of the picture's side."""

    color: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class _Region:
    x: float
    y: float
    width: float
    height: float

    def split(self, axis: int, share: float) -> tuple[_Region, _Region]:
        if axis == 0:
            w = self.width * share
            return (
                _Region(self.x, self.y, w, self.height),
                _Region(self.x + w, self.y, self.width - w, self.height),
            )
        h = self.height * share
        return (
            _Region(self.x, self.y, self.width, h),
            _Region(self.x, self.y + h, self.width, self.height - h),
        )


def place(scene: Scene, rng: np.random.Generator) -> tuple[Placed, ...]:
    """Choose a place and a size for every object, at least 3/64 of the side apart."""
    rest = _Region(_BORDER, _BORDER, 1 - 2 * _BORDER, 1 - 2 * _BORDER)
    placed: list[Placed] = []
    for k, relation in enumerate(scene.relations):
        share = _share(scene, k) * rng.uniform(0.92, 1.08)
        if relation in ("left of", "above"):
            region, rest = rest.split(relation.axis, share)
        else:
            rest, region = rest.split(relation.axis, 1 - share)
        placed += _fill(region, scene.entities[k], rng)
    placed += _fill(rest, scene.entities[-1], rng)
    return tuple(placed)


def _share(scene: Scene, k: int) -> float:
    """Return how much of what is left entity k gets. Room grows slower than the count."""
    weights = [e.count**0.4 for e in scene.entities[k:]]
    same_axis = len({r.axis for r in scene.relations[k:]}) == 1
    others = sum(weights[1:]) if same_axis else max(weights[1:])
    return float(weights[0] / (weights[0] + others))


def _fill(region: _Region, entity: Entity, rng: np.random.Generator) -> list[Placed]:
    n = entity.count
    grids = [(columns, ceil(n / columns)) for columns in range(1, n + 1)]
    sides = [min(region.width / c, region.height / r) for c, r in grids]
    good = [g for g, side in zip(grids, sides, strict=True) if side >= 0.8 * max(sides)]
    columns, rows = good[rng.integers(len(good))]
    width, height = region.width / columns, region.height / rows
    largest = min(min(width, height) - _GAP, _LARGEST) / 2
    placed = []
    for cell in rng.permutation(columns * rows)[:n]:
        radius = largest * rng.uniform(_SIZE_SPREAD, 1.0)
        slack_x, slack_y = (side / 2 - _GAP / 2 - radius for side in (width, height))
        x = region.x + width * (cell % columns + 0.5) + slack_x * rng.uniform(-1, 1)
        y = region.y + height * (cell // columns + 0.5) + slack_y * rng.uniform(-1, 1)
        placed.append(Placed(entity.color, entity.shape, float(x), float(y), float(radius)))
    return placed


def signed_distance(shape: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how far points are outside a shape that fills the square [-1, 1]², negative inside it.

    `u` runs to the right and `v` down; any shapes that broadcast.

    Raises:
        ValueError: for a shape that the lab does not have.
    """
    a, b = np.abs(u), np.abs(v)
    distance: NDArray[np.float32]
    if shape == "circle":
        distance = np.hypot(u, v) - 1
    elif shape == "square":
        distance = np.maximum(a, b) - 1
    elif shape == "triangle":
        distance = np.maximum(v - 1, (2 * a - v - 1) / np.float32(5**0.5))
    elif shape == "cross":
        distance = np.minimum(np.maximum(a - 1, b - _ARM), np.maximum(b - 1, a - _ARM))
    else:
        raise ValueError(f"unknown shape {shape!r}: the lab has {', '.join(SHAPES)}")
    return distance


def draw(
    placed: tuple[Placed, ...], rng: np.random.Generator, size: int = 64, noise: float = 6.0
) -> NDArray[np.uint8]:
    """Draw placed objects on an unsaturated background.

    Args:
        placed: the objects.
        rng: draws colors, background and noise.
        size: the picture's side in pixels, at least 32.
        noise: standard deviation of the noise, in grey levels of 255.

    Returns:
        uint8 RGB pixels (size, size, 3).

    Raises:
        ValueError: for a size below 32 or a negative noise.
    """
    if size < MIN_SIZE:
        raise ValueError(f"size must be at least {MIN_SIZE} pixels, got {size}: shapes would be lost")
    if noise < 0:
        raise ValueError(f"noise must not be negative, got {noise}")
    picture = _background(rng, size)
    for item in placed:
        _paint(picture, item, rng)
    if noise > 0:
        picture += noise * rng.standard_normal(picture.shape, dtype=np.float32)
    pixels: NDArray[np.uint8] = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    return pixels


def render(scene: Scene, rng: np.random.Generator, size: int = 64, noise: float = 6.0) -> NDArray[np.uint8]:
    """Place a scene and draw it: uint8 RGB pixels (size, size, 3). See `place` and `draw`."""
    return draw(place(scene, rng), rng, size, noise)


def _background(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    base = rng.uniform(*_GREY) + rng.uniform(-_TINT, _TINT, size=3)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-_GRADIENT, _GRADIENT, size, dtype=np.float32) * rng.uniform(0, 1)
    slope = ramp * np.float32(np.cos(angle)) + ramp[:, None] * np.float32(np.sin(angle))
    return slope[:, :, None] + base.astype(np.float32)


def _paint(picture: NDArray[np.float32], item: Placed, rng: np.random.Generator) -> None:
    size = len(picture)
    x, y, radius = item.x * size, item.y * size, item.radius * size
    # Only the pixels around the object: the rest of the picture is most of the work at large sizes.
    left, top = int(x - radius - 1), int(y - radius - 1)
    columns = slice(max(left, 0), int(x + radius + 2))
    rows = slice(max(top, 0), int(y + radius + 2))
    grid = np.arange(size, dtype=np.float32) + np.float32(0.5)
    u = (grid[columns] - np.float32(x)) / np.float32(radius)
    v = (grid[rows] - np.float32(y)) / np.float32(radius)
    # How deep a pixel's center lies, in pixels, is near enough how much of the pixel is covered.
    cover = np.clip(0.5 - signed_distance(item.shape, u, v[:, None]) * np.float32(radius), 0, 1)
    color = PALETTE[item.color] + rng.uniform(-COLOR_JITTER, COLOR_JITTER, size=3)
    patch = picture[rows, columns]
    patch += cover[:, :, None] * (color.astype(np.float32) - patch)
