"""Rows of JSON lines and of CSV. Offsets are bytes."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rewardzoo.columns import read_object
from rewardzoo.services.bulk.rows import Columns, Row, Scan, make_row


class JsonLines:
    """One object a line; blank lines count for nothing."""

    def scan(self, path: Path, chunk_rows: int) -> Scan:
        """Look through a file, as `Reader.scan`."""
        lines = _Lines()
        starts, rows, before = [], 0, 0
        with path.open("rb") as file:
            for line in lines.of(file):
                if line.strip():
                    if rows % chunk_rows == 0:
                        starts.append((rows, before))
                    rows += 1
                before = lines.offset
        return Scan(rows, starts, lines.digest.hexdigest())

    def read(self, path: Path, start: int, stop: int, offset: int, columns: Columns) -> Iterator[Row]:
        """Read rows, as `Reader.read`."""
        number = start
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if number == stop:
                    return
                if not line.strip():
                    continue
                try:
                    yield make_row(read_object(line), number, path.parent, columns)
                except ValueError as error:
                    yield Row(number, error=str(error))
                number += 1


class Csv:
    """A header and one record a row; a quoted field may hold line breaks."""

    def scan(self, path: Path, chunk_rows: int) -> Scan:
        """Look through a file, as `Reader.scan`."""
        lines = _Lines()
        starts, rows = [], 0
        with path.open("rb") as file:
            records = csv.reader(map(_text, lines.of(file)))
            try:
                next(records, None)  # the header
                before = lines.offset
                for record in records:
                    if record:
                        if rows % chunk_rows == 0:
                            starts.append((rows, before))
                        rows += 1
                    before = lines.offset
            except csv.Error as error:
                raise ValueError(f"{path}, line {records.line_num}: not CSV ({error})") from error
        return Scan(rows, starts, lines.digest.hexdigest())

    def read(self, path: Path, start: int, stop: int, offset: int, columns: Columns) -> Iterator[Row]:
        """Read rows, as `Reader.read`."""
        with path.open("rb") as file:
            header = [name.removeprefix("\ufeff") for name in next(csv.reader(map(_text, file)))]
            file.seek(offset)
            records = filter(None, csv.reader(map(_text, file)))
            for number, record in zip(range(start, stop), records, strict=False):
                yield make_row(dict(zip(header, record, strict=False)), number, path.parent, columns)


class _Lines:
    """Counts and hashes the bytes of the lines that it hands on."""

    def __init__(self) -> None:
        self.offset = 0
        self.digest = hashlib.sha256()

    def of(self, file: BinaryIO) -> Iterator[bytes]:
        for line in file:
            self.offset += len(line)
            self.digest.update(line)
            yield line


def _text(line: bytes) -> str:
    # What is not UTF-8 becomes a lone surrogate, which is refused in the row that has it.
    return line.decode("utf-8", "surrogateescape")
