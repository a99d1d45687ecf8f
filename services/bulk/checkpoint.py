"""The output folder of a bulk run, its checkpoint as well: a chunk is done when its part is there."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

MANIFEST = "_bulk.json"  # readers of a folder of Parquet skip what begins so
FORMAT = 1
_METADATA = b"rewardzoo"
_MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Done:
    """What is known of a part: how many rows it has, and how many have no score, by reward."""

    chunk: int
    rows: int
    failed: Mapping[str, int]
    provenance: Mapping[str, Mapping[str, Any]]


class Output:
    """The folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def part(self, chunk: int) -> Path:
        """Where a chunk's rows go."""
        return self.folder / f"part-{chunk:06}.parquet"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out, and take away what a killed one left half done.

        Raises:
            ValueError: another run is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another run is writing to {self.folder}: wait for it, or choose another --out"
                ) from None
            except OSError:
                pass  # shared storage that has no locks
            for left in (*self.folder.glob(".*.tmp"), *self.folder.glob(".attempts-*")):
                left.unlink(missing_ok=True)
            yield

    def manifest(self) -> dict[str, Any] | None:
        """Return what the run was begun with; None when nothing was begun here.

        Raises:
            ValueError: parts are here, or a manifest that this version cannot read.
        """
        path = self.folder / MANIFEST
        if not path.exists():
            if any(self.folder.glob("part-*.parquet")):
                raise ValueError(
                    f"{self.folder} has parts but no {MANIFEST}, so they are not of a run that can go on: "
                    "choose another --out"
                )
            return None
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise ValueError(f"its format is {manifest['format']}, this version reads {FORMAT}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be used ({error}): choose another --out") from error
        return manifest

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest."""
        text = json.dumps({"format": FORMAT, **manifest}, indent=1, ensure_ascii=False) + "\n"
        _write_whole(self.folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))

    def write_part(self, done: Done, columns: Mapping[str, pyarrow.Array]) -> None:
        """Write a chunk's rows, so that its part is there whole or not at all."""
        note = {key: value for key, value in asdict(done).items() if key != "rows"}
        table = pyarrow.table(dict(columns)).replace_schema_metadata({_METADATA: json.dumps(note)})
        _write_whole(self.part(done.chunk), lambda path: parquet.write_table(table, path, compression="zstd"))

    def all_done(self) -> dict[int, Done]:
        """Return what is known of each part that is there, by chunk.

        By a listing: asked for a part too early, a network file system may go on saying that there is none.
        """
        there = (int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*[0-9].parquet"))
        return {chunk: done for chunk in sorted(there) if (done := self.read_done(chunk))}

    def read_done(self, chunk: int) -> Done | None:
        """Return what is known of a chunk's part; None when it is not there, or cannot be read."""
        try:
            footer = parquet.read_metadata(self.part(chunk))
            return Done(rows=footer.num_rows, **json.loads(footer.metadata[_METADATA]))
        except (OSError, pyarrow.ArrowException, KeyError, TypeError, ValueError):
            return None

    def attempt(self, chunk: int) -> None:
        """Note that a chunk is begun.

        Ray starts an actor that died again, and gives it the same chunk, for ever.

        Raises:
            RuntimeError: whoever scored it has died three times in this run.
        """
        with (self.folder / f".attempts-{chunk:06}").open("ab") as file:
            if file.tell() >= _MAX_ATTEMPTS:
                raise RuntimeError(
                    f"the process that scored it died {_MAX_ATTEMPTS} times: out of memory, perhaps; "
                    "try a smaller --batch-size or fewer --actors"
                )
            file.write(b".")

    def settle(self, chunk: int) -> None:
        """Forget the attempts at a chunk that is done."""
        (self.folder / f".attempts-{chunk:06}").unlink(missing_ok=True)


def check_same(folder: Path, begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other than what a run was begun with.

    Raises:
        ValueError: something differs; it says what, and the way out.
    """
    way_out = f"give what {folder / MANIFEST} has, or choose another --out"
    for key in now:
        was, wanted = begun.get(key), now[key]
        if was == wanted:
            continue
        if key == "files":
            what = _files_differ(was or [], wanted)
            raise ValueError(f"{folder} holds scores of other input: {what}; {way_out}")
        raise ValueError(f"{folder} was begun with {key} {_told(was)}, now {_told(wanted)}; {way_out}")


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_told(inner)}" for key, inner in value.items())
    return str(value)[:16]


def _files_differ(was: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> str:
    before, after = ({file["name"]: file for file in files} for files in (was, now))
    if gone := [name for name in before if name not in after]:
        return f"{_few(gone)} {'is' if len(gone) == 1 else 'are'} missing"
    if new := [name for name in after if name not in before]:
        return f"{_few(new)} {'is' if len(new) == 1 else 'are'} new"
    changed = [name for name in after if after[name] != before[name]]
    return f"{_few(changed)} changed since" if changed else "the files come in another order"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    write(fresh)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(path)
