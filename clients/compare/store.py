"""The items of a data set and their scores on disk, so that a reward scores an item once, kills or not.

    items.parquet            a row an item: prompt_id, prompt, image, split, categories, rating, metadata
    pairs.parquet            a row a pair: a, b (rows of items.parquet), label (1 a, 0 tie, -1 b), categories
    data.json                `DataInfo`, and the folder that the image references are relative to
    scores-CHUNK-ID.parquet  a chunk of items: item, and NAME and NAME.error a reward; provenance is in its
                             schema's metadata, JSON under the key `rewardzoo`, by reward

A chunk is a row group of items.parquet. A file under its name is whole; readers skip other names.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rewardzoo.clients.compare.summaries import DataInfo, RewardInfo

if TYPE_CHECKING:
    import pyarrow

    from rewardzoo.clients.compare.statistics import Bootstrap

CHUNK = 256
"""Items that are scored in one call, and the most that a kill costs."""
ITEMS, PAIRS, DATA = "items.parquet", "pairs.parquet", "data.json"
_METADATA = b"rewardzoo"
# Scores do not depend on what may change between two runs of one comparison.
_INCIDENTAL = {"device", "rewardzoo"}


class ScoreStore:
    """A folder with the items of one data set, and with the scores that there are. `build` makes one.

    Raises:
        ValueError: there is no data set in the folder.
    """

    def __init__(self, folder: Path) -> None:
        from pyarrow import parquet

        self.folder = folder
        try:
            found = json.loads((folder / DATA).read_text(encoding="utf-8"))
            self.info = DataInfo(**found["info"])
            self.root = Path(found["root"])
            self.chunks: int = parquet.read_metadata(folder / ITEMS).num_row_groups
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{folder} holds no items to score: {error!r}") from error
        self._parts: dict[tuple[str, int], Path] = {}
        self._provenance: dict[str, Mapping[str, Any]] = {}
        for path in sorted(folder.glob("scores-*.parquet")):
            said = json.loads(parquet.read_schema(path).metadata[_METADATA])
            self._note(int(path.name.split("-")[1]), path, said)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs from scoring into the folder, and take away what a killed one left half done.

        Raises:
            ValueError: another run is at it.
        """
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another run is scoring into {self.folder}: wait for it") from None
            except OSError:
                pass  # shared storage that has no locks
            for left in self.folder.glob(".*.tmp"):
                left.unlink(missing_ok=True)
            yield

    def items(self, columns: Sequence[str] | None = None, *, chunk: int | None = None) -> pyarrow.Table:
        """Read the items, all or those of one chunk."""
        from pyarrow import parquet

        with parquet.ParquetFile(self.folder / ITEMS) as file:
            return file.read(columns) if chunk is None else file.read_row_group(chunk, columns)

    def pairs(self) -> pyarrow.Table:
        """Read the pairs; there may be none."""
        from pyarrow import parquet

        return parquet.read_table(self.folder / PAIRS)

    def missing(self, rewards: Sequence[str]) -> dict[int, list[str]]:
        """Return which rewards have yet to score a chunk, of the chunks where some do."""
        lacking = {c: [n for n in rewards if (n, c) not in self._parts] for c in range(self.chunks)}
        return {chunk: names for chunk, names in lacking.items() if names}

    def write_scores(
        self,
        chunk: int,
        scores: Mapping[str, NDArray[np.float32]],
        errors: Mapping[str, Mapping[int, str]],
        provenance: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Keep a chunk's scores: arrays by reward, NaN where `errors` says why by the place in the chunk.

        Raises:
            ValueError: a reward is not the one that scored the other chunks here.
        """
        import pyarrow
        from pyarrow import parquet

        for name, said in provenance.items():
            self._check_same(name, said)
        count = len(next(iter(scores.values())))
        columns = {"item": pyarrow.array(np.arange(chunk * CHUNK, chunk * CHUNK + count))}
        for name, values in scores.items():
            told = errors.get(name, {})
            columns[name] = pyarrow.array(values, mask=np.isnan(values))
            columns[f"{name}.error"] = pyarrow.array([told.get(i) for i in range(count)], pyarrow.string())
        note = json.dumps({name: dict(said) for name, said in provenance.items()})
        table = pyarrow.table(columns).replace_schema_metadata({_METADATA: note})
        path = self.folder / f"scores-{chunk:06}-{uuid.uuid4().hex[:8]}.parquet"
        write_whole(path, lambda fresh: parquet.write_table(table, fresh))
        self._note(chunk, path, provenance)

    def scores(self, reward: str) -> NDArray[np.float32]:
        """Read a reward's scores of all items (items,), NaN where there is none."""
        from pyarrow import parquet

        found = np.full(self.info.items, np.nan, np.float32)
        for (name, chunk), path in self._parts.items():
            if name == reward:
                column = parquet.read_table(path, columns=[reward])[reward]
                found[chunk * CHUNK : chunk * CHUNK + len(column)] = column.to_numpy()
        return found

    @property
    def rewards(self) -> list[str]:
        """The rewards that have scored all items, by name."""
        return [name for name in sorted(self._provenance) if not self.missing([name])]

    def reward(self, name: str) -> RewardInfo:
        """Say what scored, and how many items it failed at."""
        failed = int(np.isnan(self.scores(name)).sum())
        return RewardInfo(name, failed, self._provenance.get(name, {}))

    def head(self, rewards: Sequence[str], bootstrap: Bootstrap, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return what every `Summary` of this store begins with, by field."""
        return {
            "data": self.info,
            "rewards": tuple(self.reward(name) for name in rewards),
            "confidence": bootstrap.confidence,
            "resamples": bootstrap.resamples,
            "seed": bootstrap.seed,
            "made": made,
        }

    def _note(self, chunk: int, path: Path, provenance: Mapping[str, Mapping[str, Any]]) -> None:
        for name, said in provenance.items():
            self._parts[name, chunk] = path
            self._provenance[name] = said

    def _check_same(self, name: str, said: Mapping[str, Any]) -> None:
        before = self._provenance.get(name, said)
        for key in (before.keys() | said.keys()) - _INCIDENTAL:
            if before.get(key) != said.get(key):
                raise ValueError(
                    f"{self.folder} has scores of {name} with {key} {before.get(key)}, now it is "
                    f"{said.get(key)}: score with what it was begun with, or choose another --out"
                )


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is there whole or not at all."""
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    write(fresh)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(path)
