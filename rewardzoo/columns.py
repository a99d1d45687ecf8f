"""The columns of a table of images and prompts, as `rewardzoo score` and `rewardzoo bulk` read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

IMAGE, PROMPT, METADATA, ID = "image", "prompt", "metadata", "id"


def read_object(line: str | bytes) -> dict[str, Any]:
    """Read one line of JSON lines.

    Raises:
        ValueError: not JSON, or not an object.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {line[:60]!r}")
    return row


def check_text(row: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Raise `ValueError` when one of `columns` holds no text; it names the columns that there are."""
    missing = [column for column in columns if not isinstance(row.get(column), str)]
    if missing:
        raise ValueError(f"no text in column {' or '.join(missing)}; it has {', '.join(map(str, row))}")


def read_metadata(value: object) -> dict[str, Any]:
    """Return what the rewards are told of an item: an object, or its JSON text; empty is `{}`.

    Raises:
        ValueError: the text is not JSON, or it is no object.
    """
    try:
        found = json.loads(value) if isinstance(value, str) and value.strip() else value or {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the metadata is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"the metadata must be an object, got {type(found).__name__}")
    return found
