"""What a bulk run reads: which files, and how they are cut into chunks, the same way every time."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rewardzoo.services.bulk.parquet import Parquet
from rewardzoo.services.bulk.rows import Columns, Reader, Row
from rewardzoo.services.bulk.tar import WebDataset
from rewardzoo.services.bulk.text import Csv, JsonLines

READERS: Mapping[str, Reader] = {
    ".parquet": Parquet(),
    ".jsonl": JsonLines(),
    ".csv": Csv(),
    ".tar": WebDataset(),
}
_LOOKED_AT = 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """A range of one file's rows: what is scored as a whole, and is one file of the output."""

    index: int
    file: str
    start: int
    stop: int
    offset: int

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, root: Path, columns: Columns) -> Iterator[Row]:
        """Read its rows, in the file's order."""
        path = root / self.file
        return READERS[path.suffix.lower()].read(path, self.start, self.stop, self.offset, columns)


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the input, its path relative to the plan's root."""

    name: str
    rows: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole input: files below `root`, and the chunks that they are cut into."""

    root: Path
    files: Sequence[InputFile]
    chunks: Sequence[Chunk]

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(file.rows for file in self.files)


def make_plan(inputs: Sequence[str | Path], columns: Columns, chunk_rows: int) -> Plan:
    """Find the files of `inputs` and cut them into chunks of up to `chunk_rows` rows.

    Raises:
        ValueError: nothing is there to be read, a file is damaged as a whole, or the first rows have not
            the columns named.
    """
    paths = find_files(inputs)
    root = Path(os.path.commonpath(list(map(_base, inputs))))
    files: list[InputFile] = []
    chunks: list[Chunk] = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        scan = READERS[path.suffix.lower()].scan(path, chunk_rows)
        files.append(InputFile(name, scan.rows, scan.fingerprint))
        ends = [*(start for start, _ in scan.starts), scan.rows][1:]  # of no rows, none
        chunks += [
            Chunk(len(chunks) + i, name, start, end, offset)
            for i, ((start, offset), end) in enumerate(zip(scan.starts, ends, strict=True))
        ]
    if not chunks:
        raise ValueError(f"there are no rows in {', '.join(map(str, inputs))}")
    # A wrong name of a column is every row's error: better said before the work than in each of them.
    first = list(islice(chunks[0].read(root, columns), _LOOKED_AT))
    if all(row.error for row in first):
        raise ValueError(
            f"{root / chunks[0].file}: none of the first {len(first)} rows can be used: {first[0].error}"
        )
    return Plan(root, files, chunks)


def _base(given: str | Path) -> Path:
    """Return the folder that an input is in or is: whatever files it has, their names start there."""
    path = Path(given).expanduser().absolute()
    while not path.is_dir():
        path = path.parent
    return path


def find_files(inputs: Sequence[str | Path]) -> list[Path]:
    """Return the files that `inputs` mean, absolute, each once: files, folders (all below) and globs.

    Raises:
        ValueError: an input is or has no file of a kind that is read.
    """
    kinds = ", ".join(READERS)
    found: dict[Path, None] = {}
    for given in map(str, inputs):
        path = Path(given).expanduser()
        if path.is_dir():
            inside = sorted(path.rglob("*"))
        elif path.is_file():
            if path.suffix.lower() not in READERS:
                raise ValueError(f"{given}: the ending must be one of {kinds}")
            inside = [path]
        else:
            inside = sorted(map(Path, glob.glob(str(path), recursive=True)))
        files = [p.absolute() for p in inside if p.suffix.lower() in READERS and p.is_file()]
        if not files:
            raise ValueError(f"{given}: no file with an ending among {kinds}")
        found.update(dict.fromkeys(files))
    return list(found)
