"""What an independent judge said of a pool's images: files of GenEval, T2I-CompBench or one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from rewardzoo.clients.compare.rows import Row, cell, read_rows
from rewardzoo.clients.compare.statistics import Floats
from rewardzoo.clients.compare.store import ScoreStore
from rewardzoo.clients.compare.summaries import RewardInfo
from rewardzoo.clients.compare.tables import codes

_ID_DIGITS = 6


def judge_by_files(store: ScoreStore, files: Mapping[str, Path]) -> tuple[RewardInfo, Floats]:
    """Read result files, by the split they are of ("" for all items): scores (items,), NaN where none is.

    - GenEval's results.jsonl: `filename` and `correct`, matched by FOLDER/samples/IMAGE.png;
    - T2I-CompBench's vqa_result.json: `question_id`, the last six digits of an image's name, and `answer`;
    - rows of `image`, as the pool names it, and `score`.

    Raises:
        ValueError: a file is none of these, or says nothing of an image of the pool.
    """
    table = store.items(["image", "split"])
    images = table["image"].to_pylist()
    splits, names = codes(table["split"])
    scores = np.full(len(images), np.nan)
    for split, path in files.items():
        if split and split not in names:
            raise ValueError(f"{path} is of the split {split!r}, the pool has {', '.join(names)}")
        of_image = _results(path)
        for i in np.flatnonzero(splits == names.index(split)) if split else range(len(images)):
            scores[i] = of_image(images[i])
    if np.isnan(scores).all():
        shown = ", ".join(str(path) for path in files.values())
        raise ValueError(f"{shown}: no result is of an image of the pool; its first is {images[0]}")
    name = " + ".join(path.name for path in files.values())
    provenance = {split or "all": str(path) for split, path in files.items()}
    return RewardInfo(name, int(np.isnan(scores).sum()), provenance), scores


def judge_by_ratings(store: ScoreStore) -> tuple[RewardInfo, Floats]:
    """Take the ratings that came with the pool: scores (items,).

    Raises:
        ValueError: it has none.
    """
    ratings = store.items(["rating"])["rating"].to_numpy().astype(float)
    if np.isnan(ratings).all():
        raise ValueError(f"{store.info.source} has no ratings: name a --judge or a --judge-file")
    return RewardInfo("rating", int(np.isnan(ratings).sum()), {"source": store.info.source}), ratings


def _results(path: Path) -> Callable[[str], float]:
    """Return what a file says of an image, by the image's reference; NaN if nothing."""
    rows = list(read_rows(path))
    columns = set(rows[0]) if rows else set()
    if {"filename", "correct"} <= columns:
        by_file = _numbers(path, rows, "filename", "correct", _last_three)
        return lambda image: by_file.get(_last_three(image), np.nan)
    if {"question_id", "answer"} <= columns:
        by_id = _numbers(path, rows, "question_id", "answer", lambda value: str(int(value)))
        return lambda image: by_id.get(_question(image), np.nan)
    if {"image", "score"} <= columns:
        by_image = _numbers(path, rows, "image", "score", str)
        return lambda image: next((by_image[key] for key in _suffixes(image) if key in by_image), np.nan)
    raise ValueError(
        f"{path} has the columns {', '.join(sorted(columns)) or '(none)'}: results have filename and correct "
        "(GenEval), question_id and answer (T2I-CompBench), or image and score"
    )


def _numbers(
    path: Path, rows: list[Row], key: str, value: str, as_key: Callable[[str], str]
) -> dict[str, float]:
    places = (f"{path}, row {number}" for number in range(len(rows)))
    return {as_key(cell(r, key, at)): float(cell(r, value, at)) for r, at in zip(rows, places, strict=True)}


def _last_three(image: str) -> str:
    return "/".join(image.split("/")[-3:])


def _question(image: str) -> str:
    digits = Path(image).stem[-_ID_DIGITS:]
    return str(int(digits)) if digits.isdigit() else ""


def _suffixes(image: str) -> list[str]:
    """Return the reference, then what is left of it without its first folders: pools may share a root."""
    parts = image.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]
