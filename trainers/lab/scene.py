"""What a picture of the lab can show, and what is kept for the out-of-domain split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise, product
from typing import Literal

import numpy as np

Category = Literal["color", "shape", "count", "relation"]
Split = Literal["in_domain", "out_of_domain"]

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "cross")
CATEGORIES: tuple[Category, ...] = ("color", "shape", "count", "relation")
MAX_COUNT = 4
MAX_ENTITIES = 3
MAX_OBJECTS = 6

_COUNT_WEIGHTS = (0.34, 0.28, 0.20, 0.18)
_ENTITY_WEIGHTS: dict[Split, tuple[float, ...]] = {
    "in_domain": (0.2, 0.5, 0.3),
    "out_of_domain": (0.3, 0.7, 0.0),
}


class Relation(StrEnum):
    """Where an entity is, seen from the one named after it."""

    LEFT_OF = "left of"
    RIGHT_OF = "right of"
    ABOVE = "above"
    BELOW = "below"

    @property
    def inverse(self) -> Relation:
        """The same arrangement told from the other entity."""
        return _INVERSE[self]

    @property
    def axis(self) -> int:
        """0 along x, 1 along y."""
        return 0 if self in (Relation.LEFT_OF, Relation.RIGHT_OF) else 1


_INVERSE = {
    Relation.LEFT_OF: Relation.RIGHT_OF,
    Relation.RIGHT_OF: Relation.LEFT_OF,
    Relation.ABOVE: Relation.BELOW,
    Relation.BELOW: Relation.ABOVE,
}

Combination = tuple[str, str, Relation]
"""(color, shape, relation): an object of that color and shape that stands so to another."""


@dataclass(frozen=True)
class Entity:
    """One to four objects of one color and shape.

    Raises:
        ValueError: for a count outside 1..4, or a color or shape that the lab does not have.
    """

    count: int
    color: str
    shape: str

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"count must be 1 to {MAX_COUNT}, got {self.count}")
        if self.color not in COLORS:
            raise ValueError(f"unknown color {self.color!r}: the lab has {', '.join(COLORS)}")
        if self.shape not in SHAPES:
            raise ValueError(f"unknown shape {self.shape!r}: the lab has {', '.join(SHAPES)}")


@dataclass(frozen=True)
class Scene:
    """One to three entities in a chain: `relations[k]` says how entity k stands to entity k + 1.

    Raises:
        ValueError: when entities repeat a (color, shape) or hold more than six objects together, or
            when the relations are not one fewer than the entities.
    """

    entities: tuple[Entity, ...]
    relations: tuple[Relation, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.entities)
        if not 1 <= n <= MAX_ENTITIES:
            raise ValueError(f"a scene has 1 to {MAX_ENTITIES} entities, got {n}")
        if len(self.relations) != n - 1:
            raise ValueError(f"{n} entities take {n - 1} relations, got {len(self.relations)}")
        kinds = [(e.color, e.shape) for e in self.entities]
        if len(set(kinds)) != n:
            raise ValueError(f"entities must differ in color or shape, got {kinds}")
        total = sum(e.count for e in self.entities)
        if total > MAX_OBJECTS:
            raise ValueError(f"a scene holds at most {MAX_OBJECTS} objects, got {total}: lower a count")

    @property
    def combinations(self) -> Iterator[Combination]:
        """Both sides of every relation."""
        for (a, b), relation in zip(pairwise(self.entities), self.relations, strict=True):
            yield a.color, a.shape, relation
            yield b.color, b.shape, relation.inverse


# A rule, not a random draw: it needs no generator's stream to stay the same, and it spreads the 14
# combinations evenly over colors, shapes and relations.
HELD_OUT: frozenset[Combination] = frozenset(
    (color, shape, relation)
    for (c, color), (s, shape), (r, relation) in product(
        enumerate(COLORS), enumerate(SHAPES), enumerate(Relation)
    )
    if (c + 2 * s + 3 * r) % 7 == 0
)
"""Combinations (about 15% of the 96) that no in-domain scene uses."""


def sample_scene(rng: np.random.Generator, split: Split = "in_domain", entities: int | None = None) -> Scene:
    """Draw a scene; `entities` fixes how many it has.

    In-domain scenes have one to three entities and none of the `HELD_OUT` combinations.
    Out-of-domain scenes have one or two, and any with a relation uses at least one of them.

    Raises:
        ValueError: for an unknown split or a number of entities outside 1..3.
    """
    if split not in _ENTITY_WEIGHTS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(_ENTITY_WEIGHTS)}")
    if entities is None:
        entities = 1 + int(rng.choice(MAX_ENTITIES, p=_ENTITY_WEIGHTS[split]))
    elif not 1 <= entities <= MAX_ENTITIES:
        raise ValueError(f"entities must be 1 to {MAX_ENTITIES}, got {entities}")
    while True:
        counts = 1 + rng.choice(MAX_COUNT, size=entities, p=_COUNT_WEIGHTS)
        if counts.sum() > MAX_OBJECTS:
            continue
        scene = _draw(rng, [int(c) for c in counts])
        seen = not HELD_OUT.intersection(scene.combinations)
        if entities == 1 or seen == (split == "in_domain"):
            return scene


def _draw(rng: np.random.Generator, counts: list[int]) -> Scene:
    kinds = rng.choice(len(COLORS) * len(SHAPES), size=len(counts), replace=False)
    relations = tuple(Relation)
    return Scene(
        tuple(
            Entity(count, COLORS[kind // len(SHAPES)], SHAPES[kind % len(SHAPES)])
            for count, kind in zip(counts, kinds, strict=True)
        ),
        tuple(relations[k] for k in rng.integers(len(relations), size=len(counts) - 1)),
    )
