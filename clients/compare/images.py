"""References to images, so that a data set can be listed without a pixel in memory.

folder/cat.png                   a file, relative to the data set's root
images/test.zip!cat.png          a member of a zip file
data/test.parquet#jpg_0:17       row 17 of a column: encoded bytes, or a struct of `bytes` and `path`
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rewardzoo.clients.images import ImageLike
from rewardzoo.errors import ItemError

_ROWS = 16


def zip_member(archive: str, member: str) -> str:
    """Refer to a member of a zip file."""
    return f"{archive}!{member}"


def parquet_cell(file: str, column: str, row: int) -> str:
    """Refer to an image in a Parquet file."""
    return f"{file}#{column}:{row}"


class ImageReader:
    """Opens references under `root`. Parquet asked for in order is read once, a few rows at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._zips: dict[str, zipfile.ZipFile] = {}
        self._columns: dict[tuple[str, str], _Column] = {}

    def open(self, reference: str) -> ImageLike:
        """Return what `score` takes: a path, which need not exist, or a file's bytes.

        Raises:
            ItemError: the archive has no such image.
        """
        if ".zip!" in reference:
            archive, _, member = reference.partition("!")
            try:
                return self._zip(archive).read(member)
            except (KeyError, OSError, zipfile.BadZipFile) as error:
                raise ItemError(f"cannot read {member} of {archive}: {error}") from error
        if ".parquet#" in reference:
            file, _, place = reference.rpartition("#")
            column, _, row = place.rpartition(":")
            if (file, column) not in self._columns:
                self._columns[file, column] = _Column(self._root / file, column)
            image = self._columns[file, column].read(int(row))
            return image if isinstance(image, bytes) else self._root / image
        return self._root / reference

    def close(self) -> None:
        """Close the files."""
        for archive in self._zips.values():
            archive.close()
        self._zips, self._columns = {}, {}

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _zip(self, archive: str) -> zipfile.ZipFile:
        if archive not in self._zips:
            self._zips[archive] = zipfile.ZipFile(self._root / archive)
        return self._zips[archive]


class _Column:
    """One column of a Parquet file, read forwards; going back begins the row group of the row anew."""

    def __init__(self, path: Path, column: str) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path, pre_buffer=False)
        self._column = column
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self._group = self._first = -1
        self._rows: list[Any] = []

    def read(self, row: int) -> bytes | str:
        group = max(i for i, start in enumerate(self._starts) if start <= row)
        if group != self._group or row < self._first:
            self._begin(group)
        while row >= self._first + len(self._rows):
            self._first += len(self._rows)
            self._rows = next(self._batches)
        value = self._rows[row - self._first]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if not isinstance(value, bytes | str):
            raise ItemError(f"no image in row {row} of {self._column}: {type(value).__name__}")
        return value

    def _begin(self, group: int) -> None:
        self._group, self._first = group, self._starts[group]
        self._batches = self._iterate(group)
        self._rows = []

    def _iterate(self, group: int) -> Iterator[list[Any]]:
        batches = self._file.iter_batches(_ROWS, row_groups=[group], columns=[self._column])
        for batch in batches:
            yield batch.column(0).to_pylist()
