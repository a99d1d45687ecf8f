"""The lab's pictures on disk, in the plain formats that `rewardzoo compare` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewardzoo.trainers.lab.pairs import triples
from rewardzoo.trainers.lab.scene import Split
from rewardzoo.trainers.lab.verdict import judge


def write_preferences(
    folder: Path, n: int, seed: int, splits: Sequence[Split] = ("in_domain", "out_of_domain"), size: int = 64
) -> Path:
    """Write `n` triples of each split as preferences, and return the table: right is chosen, wrong rejected.

    Rows of pairs.jsonl: prompt, chosen, rejected, category, split. The same for the same arguments.
    """
    rows = []
    for split in splits:
        for number, triple in enumerate(triples(n, seed, split, size)):
            names = {side: f"{split}/{number:06}-{side}.png" for side in ("right", "wrong")}
            _save(folder / names["right"], triple.right)
            _save(folder / names["wrong"], triple.wrong)
            categories = [triple.category, split]
            row = {"prompt": triple.prompt, "chosen": names["right"], "rejected": names["wrong"]}
            rows.append({**row, "category": categories, "split": split})
    return _write(folder / "pairs.jsonl", rows)


def write_pool(folder: Path, candidates: Iterable[tuple[str, Sequence[NDArray[np.uint8]]]]) -> Path:
    """Write prompts with candidate pictures of each, and return the table.

    Rows of pool.jsonl: prompt, image, rating, which is the exact judge's score, the share of the prompt's
    statements that hold.

    Raises:
        ValueError: a prompt outside the lab's grammar.
    """
    rows = []
    for number, (prompt, pictures) in enumerate(candidates):
        for place, picture in enumerate(pictures):
            name = f"{number:06}/{place:03}.png"
            _save(folder / name, picture)
            rows.append({"prompt": prompt, "image": name, "rating": judge(picture, prompt).score})
    return _write(folder / "pool.jsonl", rows)


def _save(path: Path, picture: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
