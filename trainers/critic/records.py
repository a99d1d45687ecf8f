"""What critics learn from: pictures with their prompts and labels, in Parquet.

A data set is a folder with a folder for each split, `train/part-00000.parquet` and so on, which
`datasets.load_dataset` and the hub read as they are.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewardzoo.errors import require
from rewardzoo.trainers.grids import Sample, draw_grid

if TYPE_CHECKING:
    from datasets import Dataset, Features

Stage = Literal["selection", "clarity", "potential", "reflection"]
"""What is asked: whether a finished picture shows its prompt; whether an unfinished one can be judged;
whether it will end well; what is wrong with a finished one, in words."""
STAGES: tuple[str, ...] = get_args(Stage)


@dataclass(frozen=True)
class Record:
    """One question about one picture, and its answer.

    `image` is a file. `label` is the chance of yes: 0 or 1, or between where judges differ. `step` of
    `steps` says how much of the picture is there. `picture` names the finished picture: all its steps have
    one name, so that they can be kept together.
    """

    image: bytes
    prompt: str
    stage: Stage
    label: float
    step: int
    steps: int
    picture: str
    category: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        if not 0 <= self.label <= 1:
            raise ValueError(f"label must lie in [0, 1], got {self.label}")


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt, files both; `label` is the chance that the first is the better one."""

    image_a: bytes
    image_b: bytes
    prompt: str
    label: float


def features(kind: type[Record | Pair]) -> Features:
    """The columns of a kind of rows, in the words of `datasets`."""
    require("datasets", extra="train")
    from datasets import Features, Image, Value

    types: dict[str, Any] = {"bytes": Image(), "float": Value("float32"), "int": Value("int32")}
    return Features({field.name: types.get(str(field.type), Value("string")) for field in fields(kind)})


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Write pixels (H, W, 3) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def write_part(
    path: Path, records: Sequence[Record] | Sequence[Pair], kind: type[Record | Pair] = Record
) -> None:
    """Write a part whole, or not at all: what is killed leaves no part that is half there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{name: _cell(value) for name, value in vars(record).items()} for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    schema = features(kind).arrow_schema
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), fresh, row_group_size=256)
    fresh.replace(path)


def _cell(value: Any) -> Any:
    return {"bytes": value, "path": None} if isinstance(value, bytes) else value


def read(folder: str | Path, split: str) -> Dataset:
    """Open a split of a data set, memory-mapped: any row can be read, none is held.

    Raises:
        ValueError: the folder has no such split.
    """
    require("datasets", extra="train")
    from datasets import load_dataset

    parts = sorted(Path(folder, split).glob("part-*.parquet"))
    if not parts:
        there = sorted(path.parent.name for path in Path(folder).glob("*/part-*.parquet"))
        raise ValueError(
            f"{folder} has no split {split!r}: there is {', '.join(dict.fromkeys(there)) or 'none'}"
        )
    return load_dataset("parquet", data_files=[str(part) for part in parts], split="train")


MOST_REPEATED = 2
"""How often a row of the rarer answer is shown in an epoch."""


def balanced(labels: Sequence[float], groups: Sequence[str], rng: np.random.Generator) -> NDArray[np.int64]:
    """Pick, in each group, as many rows of yes as of no: sorted indices.

    Those of the rarer answer are picked up to `MOST_REPEATED` times; what the commoner one has beyond that is
    dropped by chance. A label of 0.5 and more counts as yes. A group without a yes or without a no is left
    out: what all of it has in common could be learned instead of what is asked.
    """
    yes = np.array(labels) >= 0.5
    names = np.array(groups)
    kept: list[NDArray[np.int64]] = []
    for name in np.unique(names):
        sides = [np.flatnonzero((names == name) & side) for side in (yes, ~yes)]
        few, many = sorted(map(len, sides))
        count = min(many, MOST_REPEATED * few)
        kept += [np.resize(rng.permutation(side), count) for side in sides]
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)


def contact_sheet(rows: Dataset, path: Path, count: int = 24) -> None:
    """Draw rows from all over a data set, each with its question, answer and prompt."""
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    samples = [
        Sample(
            np.asarray(row["image"].convert("RGB")),
            row["prompt"],
            [
                f"{row['stage']} {row['step']}/{row['steps']}",
                answer_of(row["stage"], row["label"], row["reason"]),
            ],
        )
        for row in (rows[int(i)] for i in places)
    ]
    draw_grid(samples).save(path)


def answer_of(stage: str, label: float, reason: str) -> str:
    """What a critic should answer: yes or no, and of a reflection's no the reason."""
    word = "yes" if label >= 0.5 else "no"
    return f"{word}, {reason}" if stage == "reflection" and reason and word == "no" else word


def pairs_of(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, int, int]]:
    """Find the preferences in finished pictures: (prompt, row of a yes, row of a no), rows used once."""
    waiting: dict[str, tuple[list[int], list[int]]] = {}
    for i, row in enumerate(rows):
        if row["stage"] == "selection":
            waiting.setdefault(row["prompt"], ([], []))[0 if row["label"] >= 0.5 else 1].append(i)
    for prompt, (yes, no) in waiting.items():
        yield from ((prompt, chosen, rejected) for chosen, rejected in zip(yes, no, strict=False))
