"""The plain formats: tables of judged pairs, and pools of candidates, as GenEval and T2I-CompBench too."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from rewardzoo.clients.compare.groups import FIRST, SECOND, TIE, Group
from rewardzoo.clients.compare.images import parquet_cell
from rewardzoo.clients.compare.rows import Row, cell, files_in, image_columns, read_rows
from rewardzoo.columns import IMAGE, METADATA, PROMPT, read_metadata

LABELS = {"a": FIRST, "b": SECOND, "tie": TIE}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def pairs(path: Path, root: Path) -> Iterator[Group]:
    """Rows of prompt and chosen, rejected; or of prompt, image_a, image_b, label ("a", "b" or "tie").

    Optional: prompt_id, category (a word or a list), split, metadata. Images are paths relative to the
    file, or in Parquet bytes or structs of bytes.
    """
    for file in files_in(path):
        table = _Table(file, root)
        for number, row in enumerate(read_rows(file)):
            where = f"{file}, row {number}"
            if "chosen" in row or "chosen" in table.held:
                sides, label = ("chosen", "rejected"), FIRST
            else:
                sides, said = ("image_a", "image_b"), cell(row, "label", where)
                if said not in LABELS:
                    raise ValueError(f"{where}: label must be 'a', 'b' or 'tie', got {said!r}")
                label = LABELS[said]
            images = tuple(table.image(row, side, number) for side in sides)
            yield _group(row, where, images, ((0, 1, label),))


def pool(path: Path, root: Path) -> Iterator[Group]:
    """Candidates: rows of image and prompt, with prompt_id, category, split, metadata, rating if there are.

    `rating` is what a judge said of an image. A folder is read as GenEval keeps images
    (00000/metadata.jsonl, 00000/samples/0000.png) or as T2I-CompBench does (samples/PROMPT_000000.png).
    """
    if path.is_dir() and (folders := sorted(p.parent for p in path.glob("*/metadata.jsonl"))):
        for folder in folders:
            row = next(read_rows(folder / "metadata.jsonl"))
            images = tuple(_pictures(folder / "samples", root))
            kinds = (str(row["tag"]),) if row.get("tag") else ()
            yield Group(folder.name, str(cell(row, PROMPT, str(folder))), images, categories=kinds)
    elif path.is_dir() and (samples := path / "samples").is_dir():
        yield from _compbench(samples, root)
    else:
        for file in files_in(path):
            table = _Table(file, root)
            for number, row in enumerate(read_rows(file)):
                where = f"{file}, row {number}"
                rating = (float(row["rating"]),) if row.get("rating") is not None else ()
                yield _group(row, where, (table.image(row, IMAGE, number),), ratings=rating)


class _Table:
    """Where a file's images are."""

    def __init__(self, file: Path, root: Path) -> None:
        self._file = file
        self.held = set(image_columns(file)) if file.suffix == ".parquet" else set()
        self._name = _under(root, file)
        # With images elsewhere, their paths are relative to that folder.
        self._folder = "" if self._name.startswith("../") else self._name.rpartition("/")[0]

    def image(self, row: Row, column: str, number: int) -> str:
        if column in self.held:
            return parquet_cell(self._name, column, number)
        path = str(cell(row, column, f"{self._file}, row {number}"))
        return f"{self._folder}/{path}" if self._folder else path


def _group(
    row: Row,
    where: str,
    images: tuple[str, ...],
    judged: tuple[tuple[int, int, int], ...] = (),
    ratings: tuple[float, ...] = (),
) -> Group:
    prompt, kinds = str(cell(row, PROMPT, where)), row.get("category") or ()
    key = row.get("prompt_id")
    told: dict[str, Any] = read_metadata(row[METADATA]) if row.get(METADATA) else {}
    return Group(
        prompt if key is None else str(key),
        prompt,
        images,
        judged,
        (kinds,) if isinstance(kinds, str) else tuple(map(str, kinds)),
        str(row.get("split") or ""),
        ratings,
        told,
    )


def _compbench(samples: Path, root: Path) -> Iterator[Group]:
    named = [(re.fullmatch(r"(.+)_\d{6}", p.stem), p) for p in _files(samples)]
    found = [(str(match[1]), path) for match, path in named if match]
    if not found:
        raise ValueError(f"no images in {samples} that are named PROMPT_000000.png")
    for prompt, members in groupby(sorted(found), key=lambda pair: pair[0]):
        yield Group(prompt, prompt, tuple(_under(root, path) for _, path in members))


def _pictures(folder: Path, root: Path) -> Iterator[str]:
    for path in _files(folder):
        yield _under(root, path)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)


def _under(root: Path, path: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()
