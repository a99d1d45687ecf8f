"""`rewardzoo parity --weights`: scores that upstream published, on the released weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table


def run(names: Sequence[str], images: Path | None, golden: Path, console: Console) -> int:
    """Score upstream's pictures where weights and pictures are on disk; return 1 if a score is off, else 0.

    Raises:
        ValueError: there are no published scores for one of the names, or none can be checked here.
    """
    if not golden.exists():
        raise ValueError(f"no {golden}: it is in the repository and not in the wheel; clone it and run there")
    rows: list[dict[str, Any]] = json.loads(golden.read_text(encoding="utf-8"))
    for name in names:
        if not any(name in _names(row) for row in rows):
            known = ", ".join(row["reward"] for row in rows)
            raise ValueError(f"no published scores for {name!r}: there are those of {known}")
    chosen = [row for row in rows if not names or any(name in _names(row) for name in names)]
    table = Table("", "reward", "image", "published", "ours", "difference")
    failed = checked = 0
    for row in chosen:
        missing = _missing(row, images)
        if missing:
            console.print(f"[yellow]{row['reward']} not checked:[/] {missing}", highlight=False)
            continue
        for image, published, ours in _score(row, images or Path()):
            ok = abs(ours - published) <= row["tolerance"]
            checked, failed = checked + 1, failed + (not ok)
            mark = "[green]✓[/]" if ok else "[red]✗[/]"
            table.add_row(
                mark, row["reward"], image, f"{published:.6f}", f"{ours:.6f}", f"{ours - published:+.1e}"
            )
    if not checked:
        raise ValueError("no published score could be checked here; the lines above say what is missing")
    console.print(table)
    return 1 if failed else 0


def _names(row: dict[str, Any]) -> set[str]:
    return {row["reward"], row["reward"].partition(":")[0]}


def _missing(row: dict[str, Any], images: Path | None) -> str:
    from rewardzoo.rewards import is_on_disk, resolve

    if not is_on_disk(resolve(row["reward"])[1]):
        return f"its weights are not on disk; `rewardzoo score --reward {row['reward']} …` downloads them"
    absent = [name for name in row["scores"] if images is None or not (images / name).exists()]
    return f"give --images DIR with {', '.join(absent)} from {row['images']}" if absent else ""


def _score(row: dict[str, Any], images: Path) -> list[tuple[str, float, float]]:
    from rewardzoo.rewards import load

    model = load(row["reward"], device="cpu")
    names = list(row["scores"])
    ours = model.score([Image.open(images / name) for name in names], [row["prompt"]] * len(names))
    return [(name, row["scores"][name], score) for name, score in zip(names, ours, strict=True)]
