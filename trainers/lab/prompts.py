"""Prompts from scenes and scenes from prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np

from rewardzoo.trainers.lab.scene import (
    COLORS,
    SHAPES,
    Entity,
    Relation,
    Scene,
    Split,
    sample_scene,
)

Style = Literal["compositional", "short"]
T = TypeVar("T")

MAX_TOKENS = 30
"""No prompt has more words and commas than this, so one fits 33 tokens with its special tokens."""

_NUMBERS = {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4}
PLURALS = {s: "crosses" if s == "cross" else f"{s}s" for s in SHAPES}
_COLORS = {c: c for c in COLORS}
_SHAPES = {s: s for s in SHAPES} | {plural: s for s, plural in PLURALS.items()}
_RELATIONS = {
    "left of": Relation.LEFT_OF,
    "to the left of": Relation.LEFT_OF,
    "right of": Relation.RIGHT_OF,
    "to the right of": Relation.RIGHT_OF,
    "above": Relation.ABOVE,
    "over": Relation.ABOVE,
    "below": Relation.BELOW,
    "under": Relation.BELOW,
}
_OPENERS = ("a photo of", "a picture of", "an image of")
_CLOSERS = ("on a plain background", "on an empty background")
_VERBS = ("is", "are")
_GLUE = ("and", "the", "which", "with")
_STYLE_OF: dict[Split, Style] = {"in_domain": "compositional", "out_of_domain": "short"}

VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        " ".join(
            [*_NUMBERS, *_COLORS, *_SHAPES, *_RELATIONS, *_OPENERS, *_CLOSERS, *_VERBS, *_GLUE, ","]
        ).split()
    )
)
"""Every word and punctuation mark that `prompt_of` uses."""


def style_of(split: Split) -> Style:
    """Return the style in which a split's prompts are written."""
    return _STYLE_OF[split]


def prompt_of(scene: Scene, style: Style = "compositional", rng: np.random.Generator | None = None) -> str:
    """Write a scene as a prompt.

    "compositional" is long and has several paraphrases, among which `rng` chooses (without one the
    first of each is taken); "short" has one form, "a photo of a red circle left of a blue square".

    Raises:
        ValueError: for an unknown style.
    """
    if style == "short":
        return f"{_OPENERS[0]} {_chain(scene, None)}"
    if style != "compositional":
        raise ValueError(f"unknown style {style!r}: use 'compositional' or 'short'")
    listed = len(scene.entities) == 2 and rng is not None and rng.random() < 0.3
    body = _listing(scene, rng) if listed else _chain(scene, rng)
    # Three entities leave no room for an opener within MAX_TOKENS.
    opener = "" if len(scene.entities) == 3 else _pick(("", *_OPENERS[1:]), rng)
    comma = "," if len(scene.entities) > 1 else ""
    return f"{opener} {body}{comma} {_pick(_CLOSERS, rng)}".strip()


def _pick(options: tuple[str, ...], rng: np.random.Generator | None) -> str:
    return options[0] if rng is None else options[rng.integers(len(options))]


def _kind(entity: Entity) -> str:
    return f"{entity.color} {entity.shape if entity.count == 1 else PLURALS[entity.shape]}"


def _phrase(entity: Entity, rng: np.random.Generator | None) -> str:
    words = tuple(word for word, count in _NUMBERS.items() if count == entity.count)
    return f"{_pick(words, rng)} {_kind(entity)}"


def _related(relation: Relation, rng: np.random.Generator | None) -> str:
    return _pick(tuple(words for words, r in _RELATIONS.items() if r is relation), rng)


def _chain(scene: Scene, rng: np.random.Generator | None) -> str:
    text = _phrase(scene.entities[0], rng)
    for k, ((a, b), relation) in enumerate(zip(pairwise(scene.entities), scene.relations, strict=True)):
        if k > 0:
            verb = "is" if a.count == 1 else "are"
            text += _pick((f", which {verb}", f", and the {_kind(a)} {verb}"), rng)
        text += f" {_related(relation, rng)} {_phrase(b, rng)}"
    return text


def _listing(scene: Scene, rng: np.random.Generator | None) -> str:
    a, b = scene.entities
    relation = _related(scene.relations[0], rng)
    return f"{_phrase(a, rng)} and {_phrase(b, rng)}, with the {_kind(a)} {relation} the {_kind(b)}"


def parse_prompt(text: str) -> Scene:
    """Read a prompt back: every form that `prompt_of` writes, in any case.

    Raises:
        ValueError: naming the words that do not fit and what was expected there.
    """
    words = _Words(text)
    words.take(dict.fromkeys(_OPENERS, True))
    entities = [words.entity()]
    relations: list[Relation] = []
    if words.take({"and": True}):
        entities.append(words.entity())
        words.need({"with": True}, "'with'")
        words.mention(entities[0])
        relations.append(words.need(_RELATIONS, "a relation"))
        words.mention(entities[1])
    else:
        relation = words.take(_RELATIONS)
        while relation is not None:
            relations.append(relation)
            entities.append(words.entity())
            relation = words.next_relation(entities[-1])
    words.take(dict.fromkeys(_CLOSERS, True))
    words.end()
    return Scene(tuple(entities), tuple(relations))


class _Words:
    """A cursor over a prompt's words. Commas and full stops carry no meaning and are left out."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.left = re.findall(r"[^\s,.]+", text.lower())

    def take(self, phrases: Mapping[str, T]) -> T | None:
        for phrase in sorted(phrases, key=len, reverse=True):
            words = phrase.split()
            if self.left[: len(words)] == words:
                del self.left[: len(words)]
                return phrases[phrase]
        return None

    def need(self, phrases: Mapping[str, T], what: str) -> T:
        value = self.take(phrases)
        if value is None:
            found = " ".join(self.left[:3]) or "the end"
            known = ", ".join(phrases)
            raise ValueError(f"cannot read {found!r} in the prompt {self.text!r}: expected {what} ({known})")
        return value

    def entity(self) -> Entity:
        return Entity(
            self.need(_NUMBERS, "a number"),
            self.need(_COLORS, "a color"),
            self.need(_SHAPES, "a shape"),
        )

    def mention(self, entity: Entity) -> None:
        """Take "the red circles", which must be the entity meant."""
        self.need({f"the {_kind(entity)}": True}, "an entity named before")

    def next_relation(self, last: Entity) -> Relation | None:
        """Take "which are above" or "and the red circles are above", if the prompt goes on."""
        if self.take({"and": True}):
            self.mention(last)
        elif not self.take({"which": True}):
            return None
        self.need(dict.fromkeys(_VERBS, True), "a verb")
        return self.need(_RELATIONS, "a relation")

    def end(self) -> None:
        if self.left:
            rest = " ".join(self.left)
            raise ValueError(f"cannot read {rest!r} at the end of the prompt {self.text!r}")


def sample_prompts(n: int, split: Split = "in_domain", seed: int = 0) -> list[str]:
    """Return `n` different prompts of a split, the same ones for the same seed.

    Raises:
        ValueError: when the split does not have that many.
    """
    rng = np.random.default_rng(seed)
    prompts: dict[str, None] = {}
    for _ in range(20 * n):
        if len(prompts) == n:
            break
        prompts[prompt_of(sample_scene(rng, split), style_of(split), rng)] = None
    if len(prompts) < n:
        raise ValueError(f"found {len(prompts)} different {split} prompts, not {n}: ask for fewer")
    return list(prompts)
