"""Prompts to train and to evaluate on, and the order in which a training takes them."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np

from rewardzoo import columns
from rewardzoo.errors import require
from rewardzoo.trainers.config import PromptsSection
from rewardzoo.trainers.lab import Split, sample_prompts

_LAB = "lab:"
_LAB_COUNT = 1024


@dataclass(frozen=True)
class Prompt:
    """A text to paint, and what rewards that ask for it are told beside it."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def load_prompts(config: PromptsSection) -> list[Prompt]:
    """Load prompts from the lab, or from files in the order of their names.

    A text file has one prompt a line, a `.jsonl` one object a line, a `.parquet` one prompt a row; blank
    lines are left out. T2I-CompBench's prompts are `.../examples/dataset/*_train.txt`.

    Raises:
        ValueError: there is no such split or file, or a line that holds no prompt.
    """
    if config.source.startswith(_LAB):
        name = config.source.removeprefix(_LAB)
        split: Split | None = next((each for each in get_args(Split) if each == name), None)
        if split is None:
            raise ValueError(f"the lab has no split {name!r}: there are {', '.join(get_args(Split))}")
        return [Prompt(text) for text in sample_prompts(config.count or _LAB_COUNT, split, config.seed)]
    paths = sorted(map(Path, glob.glob(config.source)))
    if not paths:
        raise ValueError(f"prompts.source: there is no file {config.source}")
    found = (prompt for path in paths for prompt in _read(path, config))
    prompts = list(islice(found, config.count))
    if not prompts:
        raise ValueError(f"prompts.source: {config.source} holds no prompts")
    return prompts


class PromptOrder:
    """Takes prompts in an order that is shuffled anew each epoch, by seed; every one once an epoch.

    What comes next follows from `position` alone, the count of prompts taken, which is all its state.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self.prompts = prompts
        self.position = 0
        self._seed = seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def take(self, count: int) -> list[Prompt]:
        """Return the next prompts and move on; an epoch may end among them."""
        taken = [self._at(place) for place in range(self.position, self.position + count)]
        self.position += count
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and how many prompts it is a position among."""
        return {"position": self.position, "prompts": len(self.prompts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: it is a position among other prompts.
        """
        if state["prompts"] != len(self.prompts):
            raise ValueError(
                f"the checkpoint was trained on {state['prompts']} prompts, there are {len(self.prompts)} now"
            )
        self.position = state["position"]

    def _at(self, place: int) -> Prompt:
        epoch, row = divmod(place, len(self.prompts))
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(len(self.prompts))
        return self.prompts[int(self._order[row])]


def _read(path: Path, config: PromptsSection) -> Iterator[Prompt]:
    if path.suffix == ".parquet":
        rows = _parquet_rows(path, config)
    elif path.suffix == ".jsonl":
        rows = ((at, columns.read_object(line)) for at, line in _lines(path))
    else:
        rows = ((at, {config.prompt_column: line}) for at, line in _lines(path))
    line = 0
    try:
        for at, row in rows:
            line = at + 1
            columns.check_text(row, [config.prompt_column])
            metadata = columns.read_metadata(row.get(config.metadata_column))
            yield Prompt(row[config.prompt_column].strip(), metadata)
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8") as file:
        yield from ((at, line) for at, line in enumerate(file) if line.strip())


def _parquet_rows(path: Path, config: PromptsSection) -> Iterator[tuple[int, dict[str, Any]]]:
    require("pyarrow", extra="parquet")
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        wanted = [name for name in (config.prompt_column, config.metadata_column) if name in names]
        if config.prompt_column not in names:
            raise ValueError(f"no column {config.prompt_column}; it has {', '.join(names)}")
        at = 0
        for batch in file.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                yield at, row
                at += 1
