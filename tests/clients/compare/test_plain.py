from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from rewardzoo.clients.compare import plain
from rewardzoo.clients.compare.groups import FIRST, SECOND, TIE
from rewardzoo.clients.compare.images import ImageReader

from .conftest import write_red


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_are_chosen_and_rejected_or_a_b_and_tie(tmp_path: Path) -> None:
    sides = {"image_a": "x.png", "image_b": "y.png"}
    path = lines(
        tmp_path / "pairs.jsonl",
        {"prompt": "p", "chosen": "x.png", "rejected": "y.png", "category": "color", "split": "in_domain"},
        {"prompt": "p", **sides, "label": "a"},
        {"prompt": "p", **sides, "label": "b", "category": ["color", "count"], "prompt_id": 3},
        {"prompt": "p", **sides, "label": "tie", "metadata": {"step": 1}},
    )
    groups = list(plain.pairs(path, tmp_path))
    assert [group.pairs[0][2] for group in groups] == [FIRST, FIRST, SECOND, TIE]
    assert [group.prompt_id for group in groups] == ["p", "p", "3", "p"]
    assert [group.categories for group in groups] == [("color",), (), ("color", "count"), ()]
    assert (groups[0].split, groups[3].metadata) == ("in_domain", {"step": 1})


def test_paths_are_relative_to_the_table_or_to_the_folder_of_images(tmp_path: Path) -> None:
    path = lines(tmp_path / "sub" / "pairs.jsonl", {"prompt": "p", "chosen": "x.png", "rejected": "y.png"})
    assert next(plain.pairs(tmp_path / "sub", tmp_path)).images == ("sub/x.png", "sub/y.png")
    assert next(plain.pairs(path, tmp_path / "images")).images == ("x.png", "y.png")


def test_pairs_in_parquet_may_hold_their_images(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "p",
            "chosen": {"bytes": b"one", "path": None},
            "rejected": {"bytes": b"two", "path": None},
        }
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    (group,) = plain.pairs(tmp_path / "pairs.parquet", tmp_path)
    with ImageReader(tmp_path) as reader:
        assert [reader.open(image) for image in group.images] == [b"one", b"two"]


def test_a_row_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"prompt": "p", "image_a": "x", "image_b": "y", "label": 1})
    with pytest.raises(ValueError, match=r"row 0: label must be 'a', 'b' or 'tie', got 1"):
        list(plain.pairs(path, tmp_path))
    lines(path, {"prompt": "p", "chosen": "x"})
    with pytest.raises(ValueError, match="row 0: nothing in column rejected; it has prompt, chosen"):
        list(plain.pairs(path, tmp_path))


def test_a_pool_is_a_table_of_images_with_ratings_if_there_are(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "pool.jsonl",
        {"prompt": "p", "image": "0.png", "rating": 0.5},
        {"prompt": "p", "image": "1.png"},
    )
    groups = list(plain.pool(path, tmp_path))
    assert [group.images for group in groups] == [("0.png",), ("1.png",)]
    assert [group.ratings for group in groups] == [(0.5,), ()]


def test_a_pool_is_a_folder_of_genevals(tmp_path: Path) -> None:
    for number, prompt in enumerate(("a photo of a bench", "a photo of two cats")):
        folder = tmp_path / f"{number:05}"
        lines(folder / "metadata.jsonl", {"tag": "counting", "include": [], "prompt": prompt})
        for image in range(2):
            write_red(folder / "samples" / f"{image:04}.png", image)
        write_red(folder / "grid.png", 9)
    groups = list(plain.pool(tmp_path, tmp_path))
    assert [group.prompt for group in groups] == ["a photo of a bench", "a photo of two cats"]
    assert groups[1].images == ("00001/samples/0000.png", "00001/samples/0001.png")
    assert groups[1].categories == ("counting",)


def test_a_pool_is_a_folder_of_t2i_compbenchs(tmp_path: Path) -> None:
    for prompt, number in (("a red cup", 0), ("a blue dog", 10), ("a red cup", 1)):
        write_red(tmp_path / "samples" / f"{prompt}_{number:06}.png", number)
    groups = {group.prompt: group.images for group in plain.pool(tmp_path, tmp_path)}
    assert groups == {
        "a blue dog": ("samples/a blue dog_000010.png",),
        "a red cup": ("samples/a red cup_000000.png", "samples/a red cup_000001.png"),
    }
