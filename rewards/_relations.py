"""What a detection reward is asked, and what boxes answer: objects, their number, where they stand.

The rules are those of T2I-R1's `reward_gdino.py`, which took the spatial ones from T2I-CompBench's
`UniDet_eval/2D_spatial_eval.py`. `faithful` means T2I-R1 to the letter; else its faults are mended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewardzoo.errors import ItemError

OBJECT, COUNT, RELATION = range(3)
"""Kinds of claim."""

RELATIONS = ("left of", "right of", "above", "below", "near")
"""Relations by number; -1 is one that T2I-R1 does not know."""

EXAMPLE = '{"objects": [{"name": "dog", "count": 2}], "relations": [["dog", "left of", "cat"]]}'

_WORDS = {  # what a relation may be called
    "left of": ("on the left of", "to the left of"),
    "right of": ("on the right of", "to the right of"),
    "above": ("on top of", "on the top of", "top of", "over"),
    "below": ("on the bottom of", "on bottom of", "bottom of", "under", "beneath", "underneath"),
    "near": ("next to", "on side of", "on the side of", "beside"),
}
_KNOWN = {word: name for name, words in _WORDS.items() for word in (name, *words)}
_T2I_R1 = {  # "above" and "on top of" are in its list of words and in none of its rules
    "left of": ("left of", "on the left of"),
    "right of": ("right of", "on the right of"),
    "above": ("on the top of", "top of"),
    "below": ("on the bottom of", "below"),
    "near": ("next to", "on side of", "near"),
}
_KNOWN_T2I_R1 = {word: name for name, words in _T2I_R1.items() for word in words}
_PRESENT_BUT_MISCOUNTED = 0.2
_OVERLAP = 0.1  # from this IoU on, two objects no longer stand apart
_NEAR = 150 / 480  # T2I-CompBench: 150 pixels where the longer side has 480
_SAME_BOX = 0.5  # IoU above which two detections are one object


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that should hold: `first` is there; `value` of it; or it stands so to `second`.

    `first` and `second` number the question's names. `value` is the count, or the relation's number.
    """

    kind: int
    first: int
    second: int = -1
    value: int = -1


@dataclass(frozen=True, slots=True)
class Question:
    """What an item's metadata ask: `nouns` to detect in their order, `claims` about `names`.

    `names` are the nouns without repetition, then those that only a claim has.
    """

    nouns: tuple[str, ...]
    names: tuple[str, ...]
    claims: tuple[Claim, ...]

    def describe(self, claim: Claim) -> str:
        """Return a claim in words."""
        first = self.names[claim.first]
        if claim.kind == OBJECT:
            return first
        if claim.kind == COUNT:
            return f"{claim.value} x {first}"
        relation = RELATIONS[claim.value] if claim.value >= 0 else "(unknown relation to)"
        return f"{first} {relation} {self.names[claim.second]}"


def read_question(metadata: Mapping[str, Any], *, faithful: bool) -> Question:
    """Read the metadata of one item: `EXAMPLE`, or the fields of T2I-R1's training data.

    Those are `nouns`, `task_type`, `spatial_info` and `numeracy_info`. T2I-R1 asks one kind of claim an
    item; `faithful` does too, and else every relation, every count and every other object counts alike.

    Raises:
        ItemError: the metadata are missing or malformed, or ask what the recipe does not know.
    """
    if "objects" in metadata or "relations" in metadata:
        nouns, counts, relations = _own_fields(metadata)
        if faithful and len(relations) > 1:
            raise ItemError(f"T2I-R1 scores one relation an item, got {len(relations)}: use grounding:fixed")
        if faithful and relations:
            counts = []
        apart = {name for a, _, b in relations for name in (a, b)} | {name for name, _ in counts}
        present = [] if faithful and apart else [name for name in nouns if name not in apart]
    elif metadata.get("nouns") is not None:
        nouns, counts, relations = _t2i_r1_fields(metadata)
        present = [] if counts or relations else nouns
    else:
        raise ItemError(f"metadata must say what to look for, for example {EXAMPLE}")
    if not faithful:
        nouns, present = [list(map(_tidy, names)) for names in (nouns, present)]
        nouns = list(dict.fromkeys(nouns))
        counts = [(_tidy(name), count) for name, count in counts]
        relations = [(_tidy(a), relation, _tidy(b)) for a, relation, b in relations]
        if not nouns:
            raise ItemError(f"there is nothing to look for: name at least one object, for example {EXAMPLE}")
    names = {
        name: i
        for i, name in enumerate(dict.fromkeys([*nouns, *(name for a, _, b in relations for name in (a, b))]))
    }
    for name, _ in counts:
        names.setdefault(name, len(names))
    claims = [
        *(Claim(RELATION, names[a], names[b], _relation(a, word, b, faithful)) for a, word, b in relations),
        *(Claim(COUNT, names[name], value=count) for name, count in counts),
        *(Claim(OBJECT, names[name]) for name in present),
    ]
    return Question(tuple(nouns), tuple(names), tuple(claims))


Nouns = list[str]
Counts = list[tuple[str, int]]
Triples = list[tuple[str, str, str]]


def _own_fields(metadata: Mapping[str, Any]) -> tuple[Nouns, Counts, Triples]:
    counts, triples = [], []
    nouns = []
    for item in _rows(metadata, "objects"):
        row = {"name": item} if isinstance(item, str) else _mapping(item, "objects")
        nouns.append(_name(row.get("name"), "objects"))
        if row.get("count") is not None:
            counts.append((nouns[-1], _count(row["count"])))
    for item in _rows(metadata, "relations"):
        if isinstance(item, str) or not isinstance(item, Sequence) or len(item) != 3:
            raise ItemError(f"metadata['relations'] has {item!r}, expected three texts as in {EXAMPLE}")
        first, word, second = (_name(part, "relations") for part in item)
        triples.append((first, word, second))
        nouns += [name for name in (first, second) if name not in nouns]
    return nouns, counts, triples


def _t2i_r1_fields(metadata: Mapping[str, Any]) -> tuple[Nouns, Counts, Triples]:
    nouns = [_name(noun, "nouns") for noun in _rows(metadata, "nouns")]
    task = metadata.get("task_type")
    if task is None:
        task = next((t for t in ("spatial", "numeracy") if metadata.get(f"{t}_info") is not None), "object")
    counts, triples = [], []
    if nouns and task == "spatial":
        row = _mapping(metadata.get("spatial_info"), "spatial_info")
        first, word, second = (_name(row.get(k), "spatial_info") for k in ("obj1", "locality", "obj2"))
        triples.append((first, word, second))
    elif nouns and task == "numeracy":
        for item in _rows(metadata, "numeracy_info"):
            row = _mapping(item, "numeracy_info")
            counts.append((_name(row.get("obj_name"), "numeracy_info"), _count(row.get("num"))))
        if not counts:
            raise ItemError("metadata['numeracy_info'] is empty: it must count at least one object")
    return nouns, counts, triples


def _rows(metadata: Mapping[str, Any], key: str) -> Sequence[Any]:
    rows = metadata.get(key) or ()
    if isinstance(rows, str) or not isinstance(rows, Sequence):
        raise ItemError(f"metadata[{key!r}] must be a list, got {type(rows).__name__}: see {EXAMPLE}")
    return rows


def _mapping(value: object, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ItemError(f"metadata[{key!r}] has {value!r} where an object is expected: see {EXAMPLE}")
    return value


def _name(value: object, key: str) -> str:
    if not isinstance(value, str) or not value.strip(" ."):
        raise ItemError(f"metadata[{key!r}] has {value!r} where a text is expected: see {EXAMPLE}")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ItemError(f"a count must be a whole number from 0 on, got {value!r}")
    return value


def _tidy(name: str) -> str:
    """Return a name without what would end it early: spaces around or doubled, a full stop at its end."""
    return " ".join(name.split()).rstrip(" .")


def _relation(first: str, word: str, second: str, faithful: bool) -> int:
    if faithful:
        return RELATIONS.index(_KNOWN_T2I_R1[word]) if word in _KNOWN_T2I_R1 else -1
    if first == second:
        raise ItemError(f"a relation of {first!r} to itself cannot be told from boxes")
    known = _KNOWN.get(" ".join(word.lower().split()))
    if known is None:
        raise ItemError(f"no relation {word!r}: there are {', '.join(sorted(_KNOWN))}")
    return RELATIONS.index(known)


def caption(nouns: Sequence[str], *, faithful: bool) -> tuple[str, list[list[tuple[int, int]]], list[str]]:
    """Return the text that the detector reads, and for each noun its spans there and the phrase they spell.

    T2I-R1 takes a noun's first and last word alone, so the phrase of one with three words is never that
    noun again, and the noun is never found.
    """
    text, spans, phrases, start = " . ".join(nouns) + ".", [], [], 0
    for noun in nouns:
        words = noun.strip().split(" ") if faithful else [noun]
        length = len(words[0]) if len(words) == 1 else len(noun)
        parts = [(start, start + length)]
        if len(words) > 1:
            parts = [(start, start + len(words[0])), (start + length - len(words[-1]), start + length)]
        spans.append(parts)
        phrases.append(" ".join(text[begin:end] for begin, end in parts))
        start += length + 3  # " . "
    return text, spans, phrases


@dataclass(frozen=True, slots=True)
class Box:
    """A detection: its confidence, its centre and its size in fractions of the image."""

    score: float
    x: float
    y: float
    width: float
    height: float

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        across, down = self.width / 2, self.height / 2
        return self.x - across, self.y - down, self.x + across, self.y + down


def judge(claim: Claim, found: Mapping[int, Sequence[Box]], aspect: float, *, faithful: bool) -> float:
    """Return how far a claim holds, in [0, 1], of the boxes `found` by name.

    `aspect` is the image's width over its height. A relation in T2I-R1 reaches 0.9: 0.2 for each object
    and half of how well it holds. Mended, an object gives 0.25, as in T2I-CompBench.
    """
    first, second = found.get(claim.first, ()), found.get(claim.second, ())
    if claim.kind == OBJECT:
        return float(bool(first))
    if claim.kind == COUNT:
        if claim.value == 0 and not faithful:
            return float(not first)
        if not first:
            return 0.0
        return 1.0 if count(first, faithful=faithful) == claim.value else _PRESENT_BUT_MISCOUNTED
    if claim.first == claim.second:
        return 0.0  # T2I-R1 fails here, and calls that 0
    present = (0.2 if faithful else 0.25) * (bool(first) + bool(second))
    if not (first and second):
        return present
    one, other = (max(boxes, key=lambda box: box.score) for boxes in (first, second))
    return present + position(claim.value, one, other, aspect, faithful=faithful) / 2


def count(boxes: Sequence[Box], *, faithful: bool) -> int:
    """Return how many boxes are left when each removes those of lower confidence that overlap it.

    T2I-R1 hands centres and sizes to a function that takes corners; `faithful` repeats that.
    """
    ordered = sorted(boxes, key=lambda box: -box.score)
    corners = [(b.x, b.y, b.width, b.height) if faithful else b.corners for b in ordered]
    kept: list[tuple[float, float, float, float]] = []
    for box in corners:
        if all(_iou(box, other) <= _SAME_BOX for other in kept):
            kept.append(box)
    return len(kept)


def position(relation: int, first: Box, second: Box, aspect: float, *, faithful: bool) -> float:
    """Return how well `first` stands in a relation to `second`, in [0, 1].

    In T2I-R1 near always holds: its limit of 150 is one of pixels, its boxes are fractions of the image.
    Mended, the larger of the distances across and down counts, in fractions of the longer side, and so
    does the image's shape when they are compared.
    """
    if relation < 0:
        return 0.0
    right, down = second.x - first.x, second.y - first.y
    name = RELATIONS[relation]
    if not faithful:
        right, down = right * min(aspect, 1.0), down * min(1 / aspect, 1.0)
    if name == "near":
        distance = max(abs(right), abs(down))
        return 1.0 if faithful or distance < _NEAR else _NEAR / distance
    along, across = (right, down) if name in ("left of", "right of") else (down, right)
    ahead = along if name in ("left of", "above") else -along
    if ahead <= 0 or abs(along) <= abs(across):
        return 0.0
    overlap = _iou(first.corners, second.corners)
    return 1.0 if overlap < _OVERLAP else _OVERLAP / overlap


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the shared part of two boxes (left, top, right, bottom); 0 where both are empty."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    shared = width * height
    union = sum(areas) - shared
    return shared / union if union else 0.0
