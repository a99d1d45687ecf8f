"""Probing the items of a `ScoreStore`: which are taken, what is kept of each, and the summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rewardzoo.clients.compare.images import ImageReader
from rewardzoo.clients.compare.perturbations import Probe, default_probes
from rewardzoo.clients.compare.probe_effects import (
    ProbeExample,
    ProbeInfo,
    Probes,
    effects_of,
    most_raised,
    spreads_of,
)
from rewardzoo.clients.compare.probes import ProbeItem, ProbeScores, pixels_of, score_probes
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.clients.compare.store import ScoreStore, write_whole
from rewardzoo.clients.compare.summaries import RewardInfo
from rewardzoo.clients.images import Pixels
from rewardzoo.clients.scorer import Scorer
from rewardzoo.errors import ItemError

_EXAMPLES = 12
_SIDE = 512


def probe_store(
    store: ScoreStore,
    scorer: Scorer,
    rewards: Sequence[str],
    bootstrap: Bootstrap,
    made: Mapping[str, Any],
    *,
    folder: Path,
    limit: int | None = None,
    paraphrases: Mapping[str, Sequence[str]] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Probes:
    """Score a store's items under each probe, write the scores to `folder`, and say what they show.

    `limit` takes that many items at most, whole prompts drawn by the bootstrap's seed. `on_progress` hears
    how many pictures were scored, of at most how many.

    Writes probes-NAME.parquet, a row an item, probe and reward, and pictures of the probes to images/NAME.

    Raises:
        ValueError: no item, or no reward.
        RequestError, UnavailableError: as `Scorer.score`.
    """
    with ImageReader(store.root) as reader:
        items, numbers = _items(store, limit, bootstrap.seed)
        probes = default_probes([item.prompt for item in items], paraphrases)
        total, done = len(items) * (len(probes) + 1), 0

        def count(scored: int) -> None:
            nonlocal done
            done += scored
            on_progress(done, total)

        scored = score_probes(
            scorer, rewards, items, probes, seed=bootstrap.seed, open_image=reader.open, progress=count
        )
        on_progress(total, total)  # probes that had nothing to change in a picture included
        effects = effects_of(scored, bootstrap)
        pictures = _Pictures(folder, f"images/{store.info.name}", reader, items, bootstrap.seed)
        examples = [
            _example(scored, pictures, numbers, *place) for place in most_raised(scored, effects, _EXAMPLES)
        ]
        infos = tuple(pictures.information(probe) for probe in probes)
    _write_rows(folder / f"probes-{store.info.name}.parquet", scored, numbers)
    prompts = len(set(scored.prompt_ids))
    return Probes(
        data=replace(store.info, prompts=prompts, items=len(items), pairs=0),
        rewards=tuple(
            RewardInfo(name, int(np.isnan(scored.original[:, at]).sum()), scored.provenance.get(name, {}))
            for at, name in enumerate(rewards)
        ),
        confidence=bootstrap.confidence,
        resamples=bootstrap.resamples,
        seed=bootstrap.seed,
        made=made,
        probes=infos,
        spreads=spreads_of(scored),
        effects=effects,
        examples=tuple(example for example in examples if example),
    )


def read_paraphrases(path: Path) -> dict[str, list[str]]:
    """Read JSON lines of `prompt` and `paraphrase`, a text or a list of them; a prompt may have several rows.

    Raises:
        ValueError: a line is something else; it names the line.
    """
    found: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            given = row["paraphrase"]
            texts = [given] if isinstance(given, str) else list(given)
            found.setdefault(row["prompt"], []).extend(texts)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected prompt and paraphrase ({error!r})") from error
    return found


def _items(store: ScoreStore, limit: int | None, seed: int) -> tuple[list[ProbeItem], list[int]]:
    """Return items and their rows in items.parquet."""
    rows = store.items(["prompt_id", "prompt", "image", "metadata"]).to_pylist()
    numbers = list(range(len(rows)))
    if limit is not None and limit < len(rows):
        ids = np.array([row["prompt_id"] for row in rows])
        order = np.random.default_rng(seed).permutation(np.unique(ids))
        place = {prompt: rank for rank, prompt in enumerate(order)}
        numbers = sorted(sorted(numbers, key=lambda i: place[ids[i]])[:limit])
    items = [
        ProbeItem(
            str(i),
            rows[i]["prompt"],
            rows[i]["image"],
            rows[i]["prompt_id"],
            json.loads(rows[i]["metadata"] or "{}"),
        )
        for i in numbers
    ]
    return items, numbers


class _Pictures:
    """Makes pictures of what probes do, as files in the comparison's folder."""

    def __init__(
        self, folder: Path, below: str, reader: ImageReader, items: Sequence[ProbeItem], seed: int
    ) -> None:
        self._folder, self._below, self._reader = folder, below, reader
        self._items, self._seed = items, seed

    def save(self, at: int, probe: Probe | None) -> tuple[str, str]:
        """Save an item, under a probe or as it is: path and prompt. No path: it cannot be read or changed."""
        item = self._items[at]
        try:
            image = pixels_of(self._reader.open(item.image))
        except ItemError:
            return "", item.prompt
        pair = (image, item.prompt) if probe is None else probe(image, item.prompt, item.id, self._seed)
        if pair is None:
            return "", item.prompt
        kind = "as-it-is" if probe is None else "".join(c if c.isalnum() else "-" for c in probe.name)
        path = f"{self._below}/probe-{item.id}-{kind}.png"
        _save(self._folder / path, pair[0])
        return path, pair[1]

    def information(self, probe: Probe) -> ProbeInfo:
        """Describe a probe, with the picture of the first item that it changes."""
        path = ""
        if probe.changes == "image":
            path = next(
                (found for at in range(min(8, len(self._items))) if (found := self.save(at, probe)[0])), ""
            )
        return ProbeInfo(probe.name, probe.family, probe.changes, probe.expected, path)


def _example(
    scored: ProbeScores, pictures: _Pictures, numbers: Sequence[int], at: int, item: int, column: int
) -> ProbeExample | None:
    before, prompt = pictures.save(item, None)
    after, changed = pictures.save(item, scored.probes[at])
    if not (before and after):
        return None
    was, now = float(scored.original[item, column]), float(scored.probed[at, item, column])
    spread = spreads_of(scored)[column].images
    return ProbeExample(
        scored.probes[at].name,
        scored.rewards[column],
        numbers[item],
        (prompt, changed),
        (before, after),
        (was, now),
        (now - was) / spread,
    )


def _save(path: Path, pixels: Pixels) -> None:
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _write_rows(path: Path, scored: ProbeScores, numbers: Sequence[int]) -> None:
    """Write a row an item, probe and reward, a row group a probe."""
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    note = json.dumps({"seed": scored.seed, "provenance": scored.provenance})
    schema = pyarrow.schema(
        {
            "item": pyarrow.int64(),
            "prompt_id": pyarrow.string(),
            "probe": text,
            "expected": text,
            "reward": text,
        }
        | {"score": pyarrow.float32(), "probed_score": pyarrow.float32()},
        {"rewardzoo": note},
    )
    count, width = scored.original.shape

    def write(fresh: Path) -> None:
        with parquet.ParquetWriter(fresh, schema) as file:
            for at, probe in enumerate(scored.probes):
                kept = np.repeat(scored.applied[at], width)
                columns = {
                    "item": np.repeat(np.array(numbers), width),
                    "prompt_id": np.repeat(np.array(scored.prompt_ids, object), width),
                    "probe": np.full(count * width, probe.name, object),
                    "expected": np.full(count * width, probe.expected, object),
                    "reward": np.tile(np.array(scored.rewards, object), count),
                    "score": scored.original.ravel(),
                    "probed_score": scored.probed[at].ravel(),
                }
                arrays = [
                    pyarrow.array(values[kept], schema.field(name).type, from_pandas=True)
                    for name, values in columns.items()
                ]
                file.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write)
