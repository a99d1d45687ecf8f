"""Rows of Parquet files. Offsets are row groups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow
from pyarrow import parquet

from rewardzoo.services.bulk.rows import Columns, Row, Scan, make_row

_ROWS_AT_ONCE = 32


class Parquet:
    """Images as encoded files, as structs of bytes and path, or as paths."""

    def scan(self, path: Path, chunk_rows: int) -> Scan:
        """Look at a file's footer, as `Reader.scan`.

        Small row groups are put together and those over `chunk_rows` divided, so that no chunk shares a
        row group with another where that can be had.
        """
        starts: list[tuple[int, int]] = []
        row = filled = 0
        with _open(path) as file:
            for group, rows in enumerate(_group_rows(file)):
                if rows > chunk_rows:
                    starts += [(row + start, group) for start in range(0, rows, chunk_rows)]
                    filled = chunk_rows  # what follows begins a chunk of its own
                elif rows:
                    if not starts or filled + rows > chunk_rows:
                        starts.append((row, group))
                        filled = 0
                    filled += rows
                row += rows
        return Scan(row, starts, _fingerprint(path))

    def read(self, path: Path, start: int, stop: int, offset: int, columns: Columns) -> Iterator[Row]:
        """Read rows, as `Reader.read`."""
        wanted = (columns.image, columns.prompt, columns.metadata, columns.id)
        with _open(path) as file:
            group_rows = _group_rows(file)
            number = sum(group_rows[:offset])
            batches = file.iter_batches(
                batch_size=_ROWS_AT_ONCE,
                row_groups=range(offset, len(group_rows)),
                columns=[name for name in file.schema_arrow.names if name in wanted],
            )
            for batch in batches:
                skipped = max(0, start - number)
                number += min(skipped, len(batch))
                for found in batch.slice(skipped).to_pylist():
                    if number == stop:
                        return
                    yield make_row(found, number, path.parent, columns)
                    number += 1


def _open(path: Path) -> parquet.ParquetFile:
    try:
        # A buffer in place of whole columns: a row group of images may be gigabytes.
        return parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


def _group_rows(file: parquet.ParquetFile) -> list[int]:
    return [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]


def _fingerprint(path: Path) -> str:
    """Hash the footer, which has place, size and statistics of every column, and the file's size."""
    with path.open("rb") as file:
        size = file.seek(-8, 2) + 8
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return hashlib.sha256(b"%d " % size + file.read(length)).hexdigest()
