"""Rows of WebDataset shards: tar files in which a sample is the files of one name. Offsets are bytes."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rewardzoo.columns import read_object
from rewardzoo.services.bulk.rows import Columns, Row, Scan, make_row

# Source: webdataset's `base_plus_ext`: the key ends at the first dot of the file's own name.
_NAME = re.compile(r"^((?:.*/)?[^./]+)\.([^/]+)$")
_IMAGES = ("png", "jpg", "jpeg", "webp")
_TEXTS = ("txt", "json")


class WebDataset:
    """An image (png, jpg, jpeg, webp) and its prompt (txt, or a column of json) a sample."""

    def scan(self, path: Path, chunk_rows: int) -> Scan:
        """Look at the members' headers, as `Reader.scan`."""
        digest = hashlib.sha256()
        starts, rows, last = [], 0, None
        with path.open("rb") as file:
            for member, key, _ in _members(file, path):
                digest.update(f"{member.name}\0{member.size}\0{member.mtime}\0".encode(errors="replace"))
                if key != last:
                    if rows % chunk_rows == 0:
                        starts.append((rows, member.offset))
                    rows, last = rows + 1, key
        return Scan(rows, starts, digest.hexdigest())

    def read(self, path: Path, start: int, stop: int, offset: int, columns: Columns) -> Iterator[Row]:
        """Read rows, as `Reader.read`."""
        number, key, files = start, "", dict[str, bytes]()
        with path.open("rb") as file:
            file.seek(offset)
            for member, new_key, ending in _members(file, path):
                if new_key != key:
                    if key:
                        yield _row(key, files, number, path, columns)
                        number += 1
                    if number == stop:
                        return
                    key, files = new_key, {}
                files[ending] = file.read(member.size)
        if key:
            yield _row(key, files, number, path, columns)


def _members(file: BinaryIO, path: Path) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Yield the members that mean something, each with its key and ending, `file` standing at its data."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else every header stays in memory
                found = _NAME.match(member.name)
                if member.isfile() and found and found[2].lower() in (*_IMAGES, *_TEXTS):
                    file.seek(member.offset_data)
                    yield member, found[1], found[2].lower()
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a whole tar file, uncompressed ({error}): fetch it anew") from error


def _row(key: str, files: dict[str, bytes], number: int, path: Path, columns: Columns) -> Row:
    found: dict[str, object] = {}
    if "json" in files:
        try:
            found = read_object(files["json"])
        except ValueError as error:
            return Row(number, key, error=f"{key}.json: {error}")
    if "txt" in files:
        found[columns.prompt] = files["txt"].decode("utf-8", "surrogateescape")
    found.setdefault(columns.id, key)
    found[columns.image] = next((files[ending] for ending in _IMAGES if ending in files), None)
    return make_row(found, number, path.parent, columns)
