"""A job of a study as a process of its own: `python -m rewardzoo.trainers.lab.study FOLDER WHAT [NAME…]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from rewardzoo.trainers.lab.study.pool import sample_pool, score_pool, search_pool
from rewardzoo.trainers.lab.study.settings import open_place


def main(folder: Path, what: str, names: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """`sample SPLIT…`, `score REWARD…` or `search SPLIT…` in a study's folder."""
    torch.set_num_threads(1)
    place, given = open_place(folder), names or []
    if what == "score":
        score_pool(place, given)
        return
    if what not in ("sample", "search"):
        raise typer.BadParameter(f"sample, score or search, got {what!r}")
    for split in given:
        (sample_pool if what == "sample" else search_pool)(place, split)


if __name__ == "__main__":
    typer.run(main)
