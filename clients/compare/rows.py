"""Rows of JSON, JSON lines and Parquet, read a few at a time and without the images that Parquet holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rewardzoo.columns import read_object

ENDINGS = (".json", ".jsonl", ".parquet")
Row = dict[str, Any]

_ROWS = 1024


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file; a column of images in Parquet is left out, `image_columns` has its name.

    Raises:
        ValueError: another ending, or a file that is not what its ending says; it names file and row.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield read_object(line)
                    except ValueError as error:
                        raise ValueError(f"{path}, line {number}: {error}") from error
    elif path.suffix == ".json":
        yield from _json(path)
    else:
        raise ValueError(f"{path}: the ending must be one of {', '.join(ENDINGS)}")


def image_columns(path: Path) -> list[str]:
    """Return the columns of a Parquet file that hold images: bytes, or structs of bytes and path."""
    from pyarrow import parquet

    schema = parquet.read_schema(path)
    return [f.name for f in schema if _is_image(f.type)]


def files_in(path: Path) -> list[Path]:
    """Return the file, or the files of rows in a folder and below, sorted by name.

    Raises:
        ValueError: there is nothing there that has rows.
    """
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix in (".jsonl", ".parquet") and p.is_file())
    if not found:
        raise ValueError(f"no .jsonl or .parquet files in {path}" if path.is_dir() else f"nothing at {path}")
    return found


def cell(row: Row, column: str, where: str) -> Any:
    """Return a row's value.

    Raises:
        ValueError: it has none.
    """
    value = row.get(column)
    if value is None:
        raise ValueError(f"{where}: nothing in column {column}; it has {', '.join(map(str, row))}")
    return value


def _is_image(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import parquet

    images = set(image_columns(path))
    with parquet.ParquetFile(path) as file:
        columns = [name for name in file.schema_arrow.names if name not in images]
        for batch in file.iter_batches(_ROWS, columns=columns):
            yield from batch.to_pylist()


def _json(path: Path) -> Iterator[Row]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError(f"{path}: expected a list of objects")
    yield from found
