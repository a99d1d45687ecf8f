"""Tables of images and prompts: JSON lines, CSV and Parquet, by a file's ending."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewardzoo.columns import IMAGE, METADATA, PROMPT, check_text, read_metadata, read_object
from rewardzoo.errors import require

Rows = list[dict[str, Any]]


def read_manifest(path: Path) -> Rows:
    """Read rows with the columns `image` and `prompt`; images are relative to the manifest's folder.

    A column `metadata` is what the rewards are told of an item: an object, or its JSON text; empty is `{}`.

    Raises:
        ValueError: the file is missing, of another kind, or a row lacks a column or has metadata that is no
            object; it names the row.
    """
    if not path.is_file():
        raise ValueError(f"no manifest at {path}")
    rows = _format(path)[0](path)
    told = any(METADATA in row for row in rows)
    for number, row in enumerate(rows, 1):
        try:
            check_text(row, (IMAGE, PROMPT))
            if told:
                row[METADATA] = read_metadata(row.get(METADATA))
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
        row[IMAGE] = str(path.parent / row[IMAGE])
    return rows


def write_rows(rows: Rows, path: Path) -> None:
    """Write rows in the format of the file's ending; objects become JSON text but in JSON lines.

    Raises:
        ValueError: the ending is none of .jsonl, .csv, .parquet.
    """
    write = _format(path)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    write(rows, path)


def _read_jsonl(path: Path) -> Rows:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(read_object(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def _write_jsonl(rows: Rows, path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _read_csv(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write_csv(rows: Rows, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(map(_flat, rows))


def _read_parquet(path: Path) -> Rows:
    require("pyarrow", extra="parquet")
    from pyarrow import parquet

    rows: Rows = parquet.read_table(path).to_pylist()
    return rows


def _write_parquet(rows: Rows, path: Path) -> None:
    require("pyarrow", extra="parquet")
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([_flat(row) for row in rows]), path)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        for key, value in row.items()
    }


_FORMATS: dict[str, tuple[Callable[[Path], Rows], Callable[[Rows, Path], None]]] = {
    ".jsonl": (_read_jsonl, _write_jsonl),
    ".csv": (_read_csv, _write_csv),
    ".parquet": (_read_parquet, _write_parquet),
}


def check_format(path: Path) -> None:
    """Raise `ValueError` when the file's ending is none that can be read or written."""
    _format(path)


def _format(path: Path) -> tuple[Callable[[Path], Rows], Callable[[Rows, Path], None]]:
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"{path}: the ending must be one of {', '.join(_FORMATS)}")
    return _FORMATS[path.suffix.lower()]
