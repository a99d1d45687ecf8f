"""Right and wrong pictures of a prompt, wrong in one known way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rewardzoo.trainers.lab.prompts import prompt_of, style_of
from rewardzoo.trainers.lab.render import render
from rewardzoo.trainers.lab.scene import (
    CATEGORIES,
    COLORS,
    MAX_COUNT,
    SHAPES,
    Category,
    Entity,
    Scene,
    Split,
    sample_scene,
)

_SWAP_SHARE = 0.35


@dataclass(frozen=True, eq=False)
class Triple:
    """A prompt, a picture of it and one wrong in `category`, both uint8 RGB pixels (H, W, 3)."""

    prompt: str
    right: NDArray[np.uint8]
    wrong: NDArray[np.uint8]
    category: Category
    scene: Scene
    wrong_scene: Scene


def draw_category(scene: Scene, rng: np.random.Generator) -> Category:
    """Draw one of the categories that the scene states something in, all alike."""
    stated = CATEGORIES if scene.relations else CATEGORIES[:-1]
    return stated[rng.integers(len(stated))]


def corrupt(scene: Scene, rng: np.random.Generator, category: Category | None = None) -> Scene:
    """Return a scene in which the prompt of `scene` is false, in one category only.

    - "color", "shape": one entity gets another; or two related entities exchange their colors;
    - "count": one object more or fewer in one entity;
    - "relation": one relation turned round.

    Without a category one that applies is drawn.

    Raises:
        ValueError: for an unknown category, or "relation" with a single entity.
    """
    if category is None:
        category = draw_category(scene, rng)
    if category == "color":
        swaps = _color_swaps(scene)
        if swaps and rng.random() < _SWAP_SHARE:
            return swaps[rng.integers(len(swaps))]
    options = _options(scene, category)
    if not options:
        raise ValueError(f"a scene of one entity states no {category}: pass another category")
    return options[rng.integers(len(options))]


def _options(scene: Scene, category: Category) -> list[Scene]:
    if category == "relation":
        r = scene.relations
        return [replace(scene, relations=(*r[:k], r[k].inverse, *r[k + 1 :])) for k in range(len(r))]
    changed: list[tuple[int, Entity]] = []
    for k, entity in enumerate(scene.entities):
        if category == "color":
            changed += [(k, replace(entity, color=c)) for c in COLORS if c != entity.color]
        elif category == "shape":
            changed += [(k, replace(entity, shape=s)) for s in SHAPES if s != entity.shape]
        elif category == "count":
            counts = (entity.count - 1, entity.count + 1)
            changed += [(k, replace(entity, count=n)) for n in counts if 1 <= n <= MAX_COUNT]
        else:
            raise ValueError(f"unknown category {category!r}: use one of {', '.join(CATEGORIES)}")
    return _valid(scene, [{k: entity} for k, entity in changed])


def _color_swaps(scene: Scene) -> list[Scene]:
    """Return the scenes in which two related entities exchanged their colors.

    Of one shape they would only seem to have exchanged places, so their shapes must differ.
    """
    swaps = []
    for k, (a, b) in enumerate(pairwise(scene.entities)):
        if a.shape != b.shape and a.color != b.color:
            swaps.append({k: replace(a, color=b.color), k + 1: replace(b, color=a.color)})
    return _valid(scene, swaps)


def _valid(scene: Scene, changes: list[dict[int, Entity]]) -> list[Scene]:
    """Apply each change, leaving out those that make two entities equal or the scene too full."""
    scenes = []
    for change in changes:
        entities = tuple(change.get(k, entity) for k, entity in enumerate(scene.entities))
        with suppress(ValueError):
            scenes.append(replace(scene, entities=entities))
    return scenes


def triples(
    n: int, seed: int, split: Split = "in_domain", size: int = 64, noise: float = 6.0
) -> Iterator[Triple]:
    """Yield `n` triples, the same ones for the same arguments.

    Prompts are written in the split's style; each scene's category is drawn by `draw_category`.
    """
    rng = np.random.default_rng(seed)
    for _ in range(n):
        scene = sample_scene(rng, split)
        category = draw_category(scene, rng)
        wrong_scene = corrupt(scene, rng, category)
        yield Triple(
            prompt=prompt_of(scene, style_of(split), rng),
            right=render(scene, rng, size, noise),
            wrong=render(wrong_scene, rng, size, noise),
            category=category,
            scene=scene,
            wrong_scene=wrong_scene,
        )
