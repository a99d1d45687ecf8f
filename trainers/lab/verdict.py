"""The exact judge: what of a prompt holds in a picture, decided from the pixels alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

import numpy as np
from numpy.typing import NDArray

from rewardzoo.trainers.lab.perception import Found, find_objects
from rewardzoo.trainers.lab.prompts import parse_prompt
from rewardzoo.trainers.lab.scene import CATEGORIES, Category, Relation, Scene

RELATION_MARGIN = 0.05
"""Two groups' mean centers must lie this share of the picture apart for a relation to hold."""

# Enough for every group asked for and the largest others; all matches of more would take long.
_MAX_GROUPS = 6


@dataclass(frozen=True)
class Statement:
    """One thing a prompt says, and whether the picture shows it."""

    category: Category
    text: str
    holds: bool


@dataclass(frozen=True)
class Verdict:
    """A prompt's statements about a picture, and how many objects it did not ask for."""

    statements: tuple[Statement, ...]
    extras: int

    @property
    def correct(self) -> bool:
        """Whether every statement holds. Objects not asked for do not count against it."""
        return all(s.holds for s in self.statements)

    @property
    def score(self) -> float:
        """The share of statements that hold, 0 to 1."""
        return sum(s.holds for s in self.statements) / len(self.statements)

    @property
    def categories(self) -> dict[Category, bool | None]:
        """Whether all statements of a category hold; None where the prompt makes none."""
        holds = {c: [s.holds for s in self.statements if s.category == c] for c in CATEGORIES}
        return {c: all(values) if values else None for c, values in holds.items()}


@dataclass(frozen=True)
class _Group:
    """All objects of one color and shape."""

    color: str
    shape: str
    count: int
    center: tuple[float, float]


def judge(image: NDArray[np.uint8], prompt: str) -> Verdict:
    """Judge a picture, uint8 RGB pixels (H, W, 3), by a prompt of the lab.

    Raises:
        ValueError: for another dtype or shape of image, or a prompt outside the lab's grammar.
    """
    return evaluate(find_objects(image), parse_prompt(prompt))


def evaluate(objects: Iterable[Found], asked: Scene) -> Verdict:
    """Say which statements of a scene hold among objects.

    Objects are grouped by color and shape, and each entity asked for is compared with a group of
    its own, chosen so that most statements hold. Without a group, all that an entity is in fails.
    """
    wanted = {(e.color, e.shape) for e in asked.entities}
    groups = _group(objects)
    groups.sort(key=lambda g: (g.color, g.shape) not in wanted)
    choices: list[_Group | None] = [*groups[:_MAX_GROUPS], *[None] * len(asked.entities)]
    matches = dict.fromkeys(permutations(choices, len(asked.entities)))
    match = max(matches, key=lambda m: sum(_holds(asked, m)))
    statements = tuple(
        Statement(category, text, holds)
        for (category, text), holds in zip(_said(asked), _holds(asked, match), strict=True)
    )
    return Verdict(statements, extras=sum(g.count for g in groups if g not in match))


def _group(objects: Iterable[Found]) -> list[_Group]:
    """Return the groups, those with the most objects first."""
    members: dict[tuple[str, str], list[Found]] = {}
    for item in objects:
        members.setdefault((item.color, item.shape), []).append(item)
    groups = []
    for (color, shape), items in members.items():
        x, y = np.mean([item.center for item in items], axis=0)
        groups.append(_Group(color, shape, len(items), (float(x), float(y))))
    return sorted(groups, key=lambda g: (-g.count, g.color, g.shape))


def _said(asked: Scene) -> Iterator[tuple[Category, str]]:
    """Yield the statements of a scene, in the order of `_holds`."""
    names = [f"{e.color} {e.shape}" for e in asked.entities]
    for entity, name in zip(asked.entities, names, strict=True):
        yield "color", f"{name}: is {entity.color}"
        yield "shape", f"{name}: is a {entity.shape}"
        yield "count", f"{name}: there are {entity.count}"
    for k, relation in enumerate(asked.relations):
        yield "relation", f"{names[k]}: {relation} {names[k + 1]}"


def _holds(asked: Scene, match: Sequence[_Group | None]) -> list[bool]:
    holds: list[bool] = []
    for entity, group in zip(asked.entities, match, strict=True):
        if group is None:
            holds += [False, False, False]
        else:
            holds += [
                group.color == entity.color,
                group.shape == entity.shape,
                group.count == entity.count,
            ]
    for (a, b), relation in zip(pairwise(match), asked.relations, strict=True):
        holds.append(a is not None and b is not None and _stands(a, relation, b))
    return holds


def _stands(a: _Group, relation: Relation, b: _Group) -> bool:
    ahead = b.center[relation.axis] - a.center[relation.axis]
    if relation in (Relation.RIGHT_OF, Relation.BELOW):
        ahead = -ahead
    return ahead > RELATION_MARGIN
