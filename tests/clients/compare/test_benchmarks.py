"""Each loader on a small file in the format that the benchmark is published in."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from rewardzoo.clients.compare import benchmarks
from rewardzoo.clients.compare.groups import FIRST, SECOND, TIE
from rewardzoo.clients.compare.images import ImageReader

from .conftest import write_red


def png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def dump(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def test_hpdv2_gives_all_pairs_of_a_prompt_by_rank_and_finds_images_in_test(tmp_path: Path) -> None:
    entry = {
        "prompt": "a cat",
        "image_path": ["0.jpg", "1.jpg", "2.jpg"],
        "rank": [2, 1, 2],
        "raw_annotations": [{"rank": [2, 1, 3], "user_hash": "x"}],
    }
    dump(tmp_path / "test.json", [entry])
    write_red(tmp_path / "test" / "0.jpg", 1)
    (group,) = benchmarks.hpdv2(tmp_path, tmp_path)
    assert group.images == ("test/0.jpg", "test/1.jpg", "test/2.jpg")
    assert group.pairs == ((0, 1, SECOND), (0, 2, TIE), (1, 2, FIRST))


def test_hpdv2_says_where_it_looked_for_images(tmp_path: Path) -> None:
    path = dump(tmp_path / "test.json", [{"prompt": "a", "image_path": ["0.jpg"], "rank": [1]}])
    with pytest.raises(ValueError, match=r"test/0\.jpg: name the folder with --images"):
        list(benchmarks.hpdv2(path, tmp_path))


def test_imagereward_reads_test_json_with_ties(tmp_path: Path) -> None:
    images = [f"part-005658/images/0040/{i}.webp" for i in range(3)]
    entry = {"id": "005658-0040", "prompt": "a portal", "generations": images, "ranking": [1, 1, 5]}
    dump(tmp_path / "test.json", [entry])
    write_red(tmp_path / "test_images" / images[0], 1)
    (group,) = benchmarks.imagereward(tmp_path, tmp_path)
    assert group.prompt_id == "005658-0040"
    assert group.images[2] == f"test_images/{images[2]}"
    assert group.pairs == ((0, 1, TIE), (0, 2, FIRST), (1, 2, FIRST))


def test_imagereward_reads_the_rows_of_imagerewarddb_with_images_in_zips(tmp_path: Path) -> None:
    folder = "images/test/test_1"
    rows = [
        {"image_path": f"{folder}/{i}.png", "prompt_id": "p", "prompt": "a cat", "classification": "Animals"}
        | {"image_amount_in_total": 2, "rank": rank, "overall_rating": 3}
        for i, rank in enumerate((2, 1))
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata-test.parquet")
    (tmp_path / folder).mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / folder / "test_1.zip", "w") as archive:
        for i in range(2):
            archive.writestr(f"{i}.png", png(i))
    (group,) = benchmarks.imagereward(tmp_path, tmp_path)
    assert group.pairs == ((0, 1, SECOND),)
    assert group.categories == ("Animals",)
    with ImageReader(tmp_path) as reader:
        assert [reader.open(image) for image in group.images] == [png(0), png(1)]


def test_pickapic_reads_labels_and_ties_and_scores_an_image_of_several_rows_once(tmp_path: Path) -> None:
    def row(one: int, other: int, label: float, **more: Any) -> dict[str, Any]:
        return {
            "caption": "a cat",
            "jpg_0": png(one),
            "jpg_1": png(other),
            "label_0": label,
            "label_1": 1 - label,
            "image_0_uid": str(one),
            "image_1_uid": str(other),
            "has_label": True,
            **more,
        }

    rows = [row(1, 2, 1.0), row(2, 3, 0.5), row(3, 1, 0.0), row(4, 5, 0.0, has_label=False)]
    data = tmp_path / "data"
    data.mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), data / "test_unique-00000-of-00001-c1.parquet")
    parquet.write_table(pa.Table.from_pylist(rows[:1]), data / "validation_unique-00000-of-00001-ea.parquet")
    groups = list(benchmarks.pickapic(tmp_path, tmp_path))
    assert [group.split for group in groups] == ["test", "test", "test", "validation"]
    assert [group.pairs[0][2] for group in groups[:3]] == [FIRST, TIE, SECOND]
    assert groups[0].images[1] == groups[1].images[0]
    assert groups[2].images[1] == groups[0].images[0]
    with ImageReader(tmp_path) as reader:
        assert [reader.open(image) for image in groups[1].images] == [png(2), png(3)]
        assert reader.open(groups[0].images[0]) == png(1)  # back in the file


def test_genai_bench_reads_its_parquet_with_mean_ratings_and_skills(tmp_path: Path) -> None:
    row = {
        "Index": 7,
        "Prompt": "two cats and no dog",
        "Tags": {"advanced": ["counting", "negation"], "basic": ["attribute"]},
        "HumanRatings": {"DALLE_3": [5, 5, 4], "SDXL_Base": [1, 2, 1]},
        "DALLE_3": {"bytes": png(1), "path": "a.jpeg"},
        "SDXL_Base": {"bytes": png(2), "path": "b.jpeg"},
    }
    path = tmp_path / "train-00000-of-00001.parquet"
    parquet.write_table(pa.Table.from_pylist([row]), path)
    (group,) = benchmarks.genai_bench(path, tmp_path)
    assert group.ratings == pytest.approx((14 / 3, 4 / 3))
    assert group.categories == ("advanced", "basic", "counting", "negation", "attribute")
    assert not group.pairs
    with ImageReader(tmp_path) as reader:
        assert reader.open(group.images[1]) == png(2)


def test_genai_bench_reads_its_folder_as_t2v_metrics_lays_it_out(tmp_path: Path) -> None:
    models = {"DALLE_3": [5, 5, 5], "Midjourney_6": [2, 3, 4]}
    dump(tmp_path / "genai_image.json", {"00003": {"prompt": "a cat", "models": models}})
    dump(tmp_path / "genai_skills.json", {"basic": [3], "counting": [1], "all": [3]})
    (group,) = benchmarks.genai_bench(tmp_path, tmp_path)
    assert group.images == ("DALLE_3/00003.jpeg", "Midjourney_6/00003.jpeg")
    assert group.ratings == (5, 3)
    assert group.categories == ("basic",)


def test_mj_bench_reads_parquet_with_label_0_for_the_first_image_and_leaves_out_bias(tmp_path: Path) -> None:
    def row(label: int, category: str) -> dict[str, Any]:
        images = {f"image{i}": {"bytes": png(i), "path": None} for i in (0, 1)}
        return {"caption": "a cat", **images, "label": label, "category": category, "subcategory": "count"}

    path = tmp_path / "data" / "train-0.parquet"
    path.parent.mkdir()
    parquet.write_table(pa.Table.from_pylist([row(0, "alignment"), row(1, "quality"), row(0, "bias")]), path)
    groups = list(benchmarks.mj_bench(tmp_path, tmp_path))
    assert [group.pairs for group in groups] == [((0, 1, FIRST),), ((0, 1, SECOND),)]
    assert groups[0].categories == ("alignment", "alignment/count")


def test_mj_bench_reads_json_with_paths_and_takes_the_category_from_the_file(tmp_path: Path) -> None:
    entry = {"id": "pap_0", "source": "pick_a_pic", "caption": "a cat", "image0": "a.jpg", "image1": "b.jpg"}
    path = dump(tmp_path / "actions-test.json", [{**entry, "label": 1}])
    (group,) = benchmarks.mj_bench(path, tmp_path / "elsewhere")
    assert group.images == ("a.jpg", "b.jpg")
    assert group.pairs == ((0, 1, SECOND),)
    assert group.categories == ("actions",)
    dump(path, [{**entry, "label": "tie"}])
    with pytest.raises(ValueError, match=r"label must be 0 or 1.*'tie'"):
        list(benchmarks.mj_bench(path, tmp_path))


def test_ranks_that_do_not_fit_the_images_are_named(tmp_path: Path) -> None:
    path = dump(tmp_path / "test.json", [{"prompt": "a", "image_path": ["0.jpg"], "rank": [1, 2]}])
    write_red(tmp_path / "0.jpg", 0)
    with pytest.raises(ValueError, match=r"entry 0: 1 images and 2 ranks"):
        list(benchmarks.hpdv2(path, tmp_path))
