"""Pairs of images whose order two rewards are surest to disagree on, with copies of them to look at."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from rewardzoo.clients.compare.images import ImageReader
from rewardzoo.clients.compare.statistics import Floats
from rewardzoo.clients.compare.store import ScoreStore
from rewardzoo.clients.compare.summaries import Example
from rewardzoo.clients.compare.tables import Indices
from rewardzoo.clients.images import as_payload
from rewardzoo.errors import ItemError

_MOST_IMAGES = 64  # of a prompt: the pairs of more are many, and one is shown
_SIDE = 512
_LABELS = {1: "first", 0: "tie", -1: "second"}


def disagreements(
    store: ScoreStore, a: str, b: str, scores: Mapping[str, Floats], pools: Sequence[Indices], count: int
) -> list[Example]:
    """Pick up to `count` examples, each of another prompt, the strongest first. `images` is left empty."""
    spread_a, spread_b = (np.nanstd(scores[name]) or 1.0 for name in (a, b))
    found: list[tuple[float, int, int]] = []
    for pool in pools:
        i, j = np.triu_indices(len(pool[:_MOST_IMAGES]), 1)
        gap_a = (scores[a][pool[i]] - scores[a][pool[j]]) / spread_a
        gap_b = (scores[b][pool[i]] - scores[b][pool[j]]) / spread_b
        strength = np.where(gap_a * gap_b < 0, np.minimum(np.abs(gap_a), np.abs(gap_b)), 0.0)
        if len(strength) and strength.max() > 0:
            k = int(strength.argmax())
            one, other = (i[k], j[k]) if gap_a[k] > 0 else (j[k], i[k])
            found.append((float(strength[k]), int(pool[one]), int(pool[other])))
    chosen = sorted(found, reverse=True)[:count]
    prompts = _rows(store, ("prompt_id", "prompt"), [one for _, one, _ in chosen])
    labels = _labels(store, {(one, other) for _, one, other in chosen})
    return [
        Example(
            a=a,
            b=b,
            prompt_id=prompts[one][0],
            prompt=prompts[one][1],
            items=(one, other),
            images=("", ""),
            scores={name: (float(s[one]), float(s[other])) for name, s in scores.items()},
            label=labels.get((one, other), ""),
            strength=strength,
        )
        for strength, one, other in chosen
    ]


def with_images(store: ScoreStore, folder: Path, examples: Sequence[Example]) -> list[Example]:
    """Copy the images of examples to `folder`, small enough for a page; "" stands for one that is gone."""
    wanted = sorted({item for example in examples for item in example.items})
    paths = {}
    with ImageReader(store.root) as reader:
        for item, (reference,) in _rows(store, ("image",), wanted).items():
            path = folder / "images" / store.info.name / f"{item}.png"
            paths[item] = path.relative_to(folder).as_posix() if _copy(reader, reference, path) else ""
    return [replace(e, images=(paths[e.items[0]], paths[e.items[1]])) for e in examples]


def _rows(store: ScoreStore, columns: Sequence[str], items: Sequence[int]) -> dict[int, tuple[str, ...]]:
    if not items:
        return {}
    table = store.items(columns).take(items)
    return dict(zip(items, zip(*(table[name].to_pylist() for name in columns), strict=True), strict=True))


def _labels(store: ScoreStore, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], str]:
    table = store.pairs()
    found = {}
    for a, b, label in zip(*(table[name].to_pylist() for name in ("a", "b", "label")), strict=True):
        for pair, sign in (((a, b), 1), ((b, a), -1)):
            if pair in wanted:
                found[pair] = _LABELS[sign * label]
    return found


def _copy(reader: ImageReader, reference: str, path: Path) -> bool:
    try:
        payload = as_payload(reader.open(reference))
    except ItemError:
        return False
    image = Image.open(io.BytesIO(payload)) if isinstance(payload, bytes) else Image.fromarray(payload)
    image = image.convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return True
