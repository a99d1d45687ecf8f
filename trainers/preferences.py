"""Preferences as tables: the pairs that DPO learns from, and the files they come from and are kept in."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rewardzoo import columns
from rewardzoo.errors import require

PROMPT, CHOSEN, REJECTED = "prompt", "chosen", "rejected"

ImageEncoder = Callable[[Sequence[Image.Image]], Tensor]
"""Turns pictures into image tokens (n, N)."""


@dataclass(frozen=True, eq=False)
class Preferences:
    """M pairs of images of N tokens.

    `prompts` are M texts; `chosen` and `rejected` int32 (M, N); `gap` float32 (M,), how far apart their
    scores are, NaN where nobody said; `blank` bool (M,), whether both are learnt without their prompt;
    `reference` float32 (M, 2), the log-probabilities of chosen and rejected that the policy starts from.
    """

    prompts: Sequence[str]
    chosen: NDArray[np.int32]
    rejected: NDArray[np.int32]
    gap: NDArray[np.float32]
    blank: NDArray[np.bool_]
    reference: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: NDArray[np.int64]) -> Preferences:
        return Preferences(
            [self.prompts[row] for row in rows],
            self.chosen[rows],
            self.rejected[rows],
            self.gap[rows],
            self.blank[rows],
            self.reference[rows],
        )

    @classmethod
    def of(
        cls,
        prompts: Sequence[str],
        chosen: NDArray[np.int32],
        rejected: NDArray[np.int32],
        gap: NDArray[np.float32] | None = None,
    ) -> Preferences:
        """Pairs that are all learnt with their prompts, before there is a reference."""
        count = len(prompts)
        unknown = np.full(count, np.nan, np.float32)
        return cls(
            prompts,
            chosen,
            rejected,
            unknown if gap is None else gap,
            np.zeros(count, np.bool_),
            np.full((count, 2), np.nan, np.float32),
        )

    def drop_conditions(self, share: float, rng: np.random.Generator) -> Preferences:
        """Blank the prompt of this share of the pairs, drawn, for both sides alike."""
        return replace(self, blank=rng.random(len(self)) < share)

    def save(self, path: Path) -> None:
        """Write to a Parquet file, whole or not at all; `load` and `read_pairs` read it."""
        write_parquet(
            path,
            {
                PROMPT: list(self.prompts),
                CHOSEN: list(self.chosen),
                REJECTED: list(self.rejected),
                "gap": self.gap,
                "blank": self.blank,
                "reference_chosen": self.reference[:, 0],
                "reference_rejected": self.reference[:, 1],
            },
        )

    @classmethod
    def load(cls, path: Path) -> Preferences:
        """Read what `save` wrote."""
        table = read_parquet(path)
        return cls(
            table[PROMPT].to_pylist(),
            token_matrix(table[CHOSEN]),
            token_matrix(table[REJECTED]),
            table["gap"].to_numpy(),
            table["blank"].to_numpy(),
            np.stack([table["reference_chosen"].to_numpy(), table["reference_rejected"].to_numpy()], 1),
        )


def read_pairs(source: str, tokens_per_image: int, encode: ImageEncoder) -> Preferences:
    """Read pairs from JSON lines or Parquet: a path or a glob, files in the order of their names.

    A row is `{"prompt": text, "chosen": image, "rejected": image}`, other columns are ignored. An image is
    the list of its N token ids, or the path of a picture, absolute or beside the file, which `encode` turns
    into tokens.

    Raises:
        ValueError: there is no such file, or a row that cannot be used; the message says which.
    """
    paths = sorted(map(Path, glob.glob(source)))
    if not paths:
        raise ValueError(f"pairs.source: there is no file {source}")
    prompts: list[str] = []
    sides: dict[str, list[Any]] = {CHOSEN: [], REJECTED: []}
    for path in paths:
        for at, row in enumerate(_rows(path)):
            try:
                columns.check_text(row, [PROMPT])
                for side, found in sides.items():
                    found.append(_image(row, side, path.parent, tokens_per_image))
            except ValueError as error:
                raise ValueError(f"{path}, row {at + 1}: {error}") from error
            prompts.append(row[PROMPT].strip())
    if not prompts:
        raise ValueError(f"pairs.source: {source} holds no pairs")
    return Preferences.of(prompts, _tokens(sides[CHOSEN], encode), _tokens(sides[REJECTED], encode))


def write_parquet(path: Path, table: Mapping[str, Any]) -> None:
    """Write columns to a Parquet file that is whole or not there."""
    require("pyarrow", extra="parquet")
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    parquet.write_table(pa.table(dict(table)), beside, compression="zstd")
    beside.replace(path)


def read_parquet(path: Path) -> Any:
    """Read a Parquet file as a `pyarrow.Table`."""
    require("pyarrow", extra="parquet")
    from pyarrow import parquet

    return parquet.read_table(path)


def token_matrix(column: Any) -> NDArray[np.int32]:
    """Return a column of M lists of N token ids as int32 (M, N)."""
    rows = column.to_pylist()
    return np.array(rows, dtype=np.int32).reshape(len(rows), -1 if rows else 0)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        yield from read_parquet(path).to_pylist()
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            yield from (columns.read_object(line) for line in file if line.strip())
    else:
        raise ValueError(f"pairs.source: {path} must be .jsonl or .parquet")


def _image(row: Mapping[str, Any], side: str, folder: Path, count: int) -> list[int] | Path:
    """Return a side of a pair: token ids that can be an image's, or the path of a picture that is there."""
    value = row.get(side)
    if isinstance(value, str):
        path = folder / value
        if not path.is_file():
            raise ValueError(f"{side}: there is no picture {path}")
        return path
    if not isinstance(value, list) or not all(isinstance(v, int) and v >= 0 for v in value):
        raise ValueError(f"{side} must be a list of token ids or the path of a picture, got {value!r:.60}")
    if len(value) != count:
        raise ValueError(f"{side} has {len(value)} tokens, an image of this policy has {count}")
    return value


def _tokens(images: Sequence[list[int] | Path], encode: ImageEncoder) -> NDArray[np.int32]:
    """Put token ids, and those of pictures that are still to be encoded, into one table (M, N)."""
    pictures = [image for image in images if isinstance(image, Path)]
    batches = (pictures[start : start + 16] for start in range(0, len(pictures), 16))
    encoded = iter([row for batch in batches for row in encode([_open(path) for path in batch]).tolist()])
    return np.array([next(encoded) if isinstance(i, Path) else i for i in images], dtype=np.int32)


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
