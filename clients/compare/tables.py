"""Columns of a store as numbers: which rows belong together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardzoo.clients.compare.summaries import ALL

Indices = NDArray[np.intp]


def codes(column: Any) -> tuple[Indices, list[str]]:
    """Number the different values of an Arrow column, chunked: (rows,) and the values."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.intp), encoded.dictionary.to_pylist()


def by_category(column: Any) -> dict[str, Indices]:
    """Return all rows as `ALL`, then the rows of each category of an Arrow column of lists, by name."""
    import pyarrow.compute as pc

    found = {ALL: np.arange(len(column))}
    rows = pc.list_parent_indices(column.combine_chunks()).to_numpy()
    if len(rows):
        numbers, names = codes(pc.list_flatten(column))
        for number in sorted(range(len(names)), key=names.__getitem__):
            found[names[number]] = rows[numbers == number]
    return found


def by_prompt(prompts: Indices, usable: NDArray[np.bool_]) -> list[Indices]:
    """Return the usable rows of each prompt that has any, in the order of the rows' numbers."""
    rows = np.flatnonzero(usable)
    if not len(rows):
        return []
    rows = rows[np.argsort(prompts[rows], kind="stable")]
    return np.split(rows, np.flatnonzero(np.diff(prompts[rows])) + 1)
