from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from rewardzoo.clients.compare.data import FORMATS, default_name, find_data, guess_format, join_pools

from .conftest import write_red

HPDV2 = {"prompt": "a cat", "image_path": ["0.jpg", "1.jpg"], "rank": [1, 2], "raw_annotations": []}


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("pickapic", {"caption": "", "jpg_0": b"", "jpg_1": b"", "label_0": 1.0}),
        ("genai-bench", {"Prompt": "", "HumanRatings": {"A": [1]}, "A": b""}),
        ("mj-bench", {"caption": "", "image0": b"", "image1": b"", "label": 0}),
        ("plain", {"prompt": "", "chosen": b"", "rejected": b""}),
        ("plain", {"prompt": "", "image_a": b"", "image_b": b"", "label": "a"}),
        ("imagereward", {"image_path": "", "rank": 1, "prompt_id": "", "prompt": ""}),
        ("pool", {"prompt": "", "image": b""}),
    ],
)
def test_a_format_is_told_from_its_columns(name: str, row: dict[str, Any], tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    assert guess_format(tmp_path / "x.parquet") == guess_format(tmp_path) == name


def test_a_format_is_told_from_the_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "test.json").write_text(json.dumps([HPDV2]))
    (tmp_path / "b" / "samples").mkdir(parents=True)
    lines(tmp_path / "c" / "00000" / "metadata.jsonl", {"prompt": "a bench"})
    found = [guess_format(tmp_path / name) for name in "abc"]
    assert found == ["hpdv2", "pool", "pool"]


def test_columns_of_no_format_are_named_with_the_way_out(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", {"text": "", "picture": ""})
    with pytest.raises(ValueError, match=r"columns picture, text.*--benchmark"):
        guess_format(path)
    with pytest.raises(ValueError, match=r"one of hpdv2, imagereward, pickapic, genai-bench, mj-bench$"):
        find_data(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="got 'hpd'"):
        find_data(str(path), benchmark="hpd")


def test_the_licence_is_that_of_the_card_beside_the_data(tmp_path: Path) -> None:
    path = lines(tmp_path / "data" / "x.jsonl", {"prompt": "", "image": ""})
    assert find_data(str(path)).license == "unknown"
    (tmp_path / "README.md").write_text("---\ntags: [a]\nlicense: cc-by-4.0\n---\n# A card\n")
    assert find_data(str(path)).license == "cc-by-4.0"


def fake_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **how: Any) -> str:
        asked.append({"repository": repository, **how})
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_benchmark_is_fetched_by_name_and_its_archive_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, made = tmp_path / "hub", tmp_path / "made"
    hub.mkdir()
    (hub / "test.json").write_text(json.dumps([HPDV2]))
    (hub / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    for name in ("0.jpg", "1.jpg"):
        write_red(made / "test" / name, 1)
    with tarfile.open(hub / "test.tar.gz", "w:gz") as archive:
        archive.add(made / "test", "test")
    asked = fake_hub(hub, monkeypatch)
    monkeypatch.chdir(tmp_path)
    data = find_data("hpdv2")
    assert asked[0]["repository"] == "ymhao/HPDv2"
    assert asked[0]["allow_patterns"] == ["test.json", "test.tar.gz", "README.md"]
    assert (data.benchmark, data.license, data.source) == ("hpdv2", "apache-2.0", "hf://ymhao/HPDv2@hub")
    assert not list(hub.glob("tmp*"))
    assert [group.images for group in data.groups()] == [("test/0.jpg", "test/1.jpg")]


def test_other_data_on_the_hub_is_fetched_at_a_revision_and_read_through_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, hub = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    (hub / "data").mkdir(parents=True)
    row = {"prompt": "p", "chosen": b"1", "rejected": b"2"}
    parquet.write_table(pa.Table.from_pylist([row]), blobs / "f00")
    (hub / "data" / "train.parquet").symlink_to(blobs / "f00")  # as the hub's cache has it
    asked = fake_hub(hub, monkeypatch)
    data = find_data("hf://someone/prefs@abc")
    assert (asked[0]["repository"], asked[0]["revision"], asked[0]["allow_patterns"]) == (
        "someone/prefs",
        "abc",
        None,
    )
    (group,) = data.groups()
    assert group.images == ("data/train.parquet#chosen:0", "data/train.parquet#rejected:0")


def test_a_hub_that_cannot_be_reached_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        ValueError, match=r"cannot be fetched: no connection.*hf download --repo-type dataset a/b"
    ):
        find_data("hf://a/b")


def test_a_known_repository_has_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(tmp_path, monkeypatch)
    for name, form in FORMATS.items():
        if form.repository:
            assert find_data(f"hf://{form.repository}").benchmark == name


def test_names_for_files_come_from_the_source() -> None:
    assert default_name("some/where/my prefs.v2.jsonl") == "my-prefs.v2"
    assert default_name("hf://owner/name@main") == "name"
    assert default_name("hpdv2") == "hpdv2"


def test_pools_are_joined_by_split_under_one_root(tmp_path: Path) -> None:
    for split in ("in", "out"):
        lines(tmp_path / split / "pool.jsonl", {"prompt": "p", "image": "0.png"})
    pools = {split: find_data(str(tmp_path / split / "pool.jsonl")) for split in ("in", "out")}
    joined = join_pools(pools)
    groups = list(joined.groups())
    assert [group.split for group in groups] == ["in", "out"]
    assert [group.prompt_id for group in groups] == ["in/p", "out/p"]
    assert [joined.root / group.images[0] for group in groups] == [
        tmp_path / "in" / "0.png",
        tmp_path / "out" / "0.png",
    ]
