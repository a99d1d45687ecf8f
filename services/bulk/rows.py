"""What bulk scoring reads: rows, whatever kind of file they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from rewardzoo import columns as names


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what; WebDataset shards take image and id from a sample's files."""

    image: str = names.IMAGE
    prompt: str = names.PROMPT
    metadata: str = names.METADATA
    id: str = names.ID


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its place in its file, and what is to be scored or, in `error`, why it cannot be.

    `image` is an encoded file, or the path of one.
    """

    number: int
    id: str | None = None
    prompt: str = ""
    image: bytes | str = b""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Scan:
    """What a look through a file found.

    `starts` has, for each chunk, its first row and where in the file to begin reading it, in a unit of the
    reader's own. `fingerprint` changes with the file's content and not with its path or time.
    """

    rows: int
    starts: Sequence[tuple[int, int]]
    fingerprint: str


class Reader(Protocol):
    """Reads one kind of file."""

    def scan(self, path: Path, chunk_rows: int) -> Scan:
        """Look through a file, in memory that does not grow with it.

        Raises:
            ValueError: the file is damaged as a whole.
        """

    def read(self, path: Path, start: int, stop: int, offset: int, columns: Columns) -> Iterator[Row]:
        """Read the rows from `start` to before `stop`; `offset` is what `scan` gave for `start`.

        A row that cannot be used has an `error`; it is never left out.
        """


def make_row(found: Mapping[str, Any], number: int, folder: Path, columns: Columns) -> Row:
    """Make a row of a table's columns; paths of images are relative to `folder`."""
    key, prompt = found.get(columns.id), found.get(columns.prompt)
    row = Row(number, None if key is None else str(key), prompt if isinstance(prompt, str) else "")
    try:
        names.check_text(found, (columns.prompt,))
        image = _image(found, columns.image, folder)
        return replace(row, image=image, metadata=names.read_metadata(found.get(columns.metadata)))
    except ValueError as error:
        return replace(row, error=str(error))


def _image(found: Mapping[str, Any], column: str, folder: Path) -> bytes | str:
    value = found.get(column)
    if isinstance(value, dict):  # as Hugging Face datasets writes images
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return value if value.startswith(("http://", "https://")) else str(folder / value)
    raise ValueError(
        f"no image in column {column}: expected a path, an encoded file or a struct of bytes and path, "
        f"got {type(value).__name__}; the row has {', '.join(map(str, found))}"
    )
