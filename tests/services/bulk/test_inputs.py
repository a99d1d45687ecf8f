"""Every kind of file that bulk scoring reads, and how it is cut into chunks."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from rewardzoo.services.bulk.plan import Plan, find_files, make_plan
from rewardzoo.services.bulk.rows import Columns, Row

N = 23
PROMPTS = [f'prompt {i}, "quoted",\nin two lines ü' for i in range(N)]
Write = Callable[..., Path]


def as_jsonl(folder: Path, prompts: Sequence[str] = PROMPTS) -> Path:
    path = folder / "rows.jsonl"
    rows = [json.dumps({"id": i, "image": f"{i}.png", "prompt": prompts[i]}) for i in range(N)]
    path.write_text("\n\n".join(rows))
    return path


def as_csv(folder: Path, prompts: Sequence[str] = PROMPTS) -> Path:
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "image", "id"])
        writer.writerows([prompts[i], f"{i}.png", i] for i in range(N))
    return path


def as_parquet(folder: Path, prompts: Sequence[str] = PROMPTS) -> Path:
    path = folder / "rows.parquet"
    images = [{"bytes": b"%d" % i, "path": None} for i in range(N)]
    table = pyarrow.table(
        {"image": images, "prompt": prompts, "id": list(range(N)), "other": [[1.5]] * N},
    )
    parquet.write_table(table, path, row_group_size=3)
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def as_tar(folder: Path, prompts: Sequence[str] = PROMPTS) -> Path:
    path = folder / "rows.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(N):
            if i % 2:
                add(tar, f"./a/{i}.txt", prompts[i].encode())
                add(tar, f"./a/{i}.cls", b"7")
                add(tar, f"./a/{i}.PNG", b"%d" % i)
            else:
                add(tar, f"./a/{i}.jpg", b"%d" % i)
                add(tar, f"./a/{i}.json", json.dumps({"prompt": prompts[i], "metadata": {"n": i}}).encode())
    return path


WRITERS: Sequence[Write] = (as_jsonl, as_csv, as_parquet, as_tar)


def rows_of(plan: Plan, columns: Columns | None = None) -> list[Row]:
    return [row for chunk in plan.chunks for row in chunk.read(plan.root, columns or Columns())]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("chunk_rows", [1, 2, 5, 100])
def test_chunks_have_every_row_once_and_in_order(tmp_path: Path, write: Write, chunk_rows: int) -> None:
    plan = make_plan([write(tmp_path)], Columns(), chunk_rows)
    rows = rows_of(plan)
    assert plan.rows == N
    assert [row.number for row in rows] == list(range(N))
    assert [row.prompt for row in rows] == PROMPTS
    assert not any(row.error for row in rows)
    assert [len(list(chunk.read(plan.root, Columns()))) for chunk in plan.chunks] == [*map(len, plan.chunks)]
    assert max(map(len, plan.chunks)) <= chunk_rows
    assert [chunk.index for chunk in plan.chunks] == list(range(len(plan.chunks)))


@pytest.mark.parametrize("write", WRITERS)
def test_images_are_paths_beside_the_file_or_bytes_in_it(tmp_path: Path, write: Write) -> None:
    rows = rows_of(make_plan([write(tmp_path)], Columns(), 5))
    paths = write in (as_jsonl, as_csv)
    assert [row.image for row in rows] == [
        str(tmp_path / f"{i}.png") if paths else b"%d" % i for i in range(N)
    ]
    assert [row.id for row in rows] == [f"./a/{i}" if write is as_tar else str(i) for i in range(N)]


@pytest.mark.parametrize("write", WRITERS)
def test_a_plan_is_the_same_wherever_the_files_are_and_another_when_a_row_changes(
    tmp_path: Path, write: Write
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here = make_plan([write(tmp_path / "a")], Columns(), 5)
    copy = write(tmp_path / "b")
    assert (make_plan([copy], Columns(), 5).files, here.chunks) == (here.files, here.chunks)
    changed = make_plan([write(tmp_path / "b", [*PROMPTS[:-1], "another"])], Columns(), 5)
    assert changed.files[0].fingerprint != here.files[0].fingerprint


def test_small_row_groups_are_put_together_and_large_ones_divided(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"image": ["x.png"] * N, "prompt": PROMPTS})
    with parquet.ParquetWriter(path, table.schema) as writer:
        for start, stop in ((0, 2), (2, 4), (4, 5), (5, 18), (18, 23)):
            writer.write_table(table.slice(start, stop - start), row_group_size=N)
    plan = make_plan([path], Columns(), 5)
    assert [(c.start, c.stop) for c in plan.chunks] == [(0, 5), (5, 10), (10, 15), (15, 18), (18, 23)]


def test_columns_may_have_other_names_and_parquet_may_hold_plain_bytes_or_paths(tmp_path: Path) -> None:
    table = pyarrow.table({"jpg_0": [b"x", b"y"], "caption": ["a", "b"], "uid": ["u", "v"]})
    parquet.write_table(table, tmp_path / "bytes.parquet")
    columns = Columns(image="jpg_0", prompt="caption", id="uid")
    rows = rows_of(make_plan([tmp_path / "bytes.parquet"], columns, 5), columns)
    assert [(r.image, r.prompt, r.id) for r in rows] == [(b"x", "a", "u"), (b"y", "b", "v")]
    structs = [{"bytes": None, "path": "in/a.png"}]
    parquet.write_table(pyarrow.table({"image": structs, "prompt": ["p"]}), tmp_path / "paths.parquet")
    (row,) = rows_of(make_plan([tmp_path / "paths.parquet"], Columns(), 5))
    assert row.image == str(tmp_path / "in/a.png")


def test_metadata_comes_as_objects_or_json_and_what_is_neither_is_the_rows_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    notes = [{"a": 1}, '{"a": 2}', None, "", "{"]
    path.write_text("\n".join(json.dumps({"image": "x", "prompt": "p", "metadata": note}) for note in notes))
    rows = rows_of(make_plan([path], Columns(), 5))
    assert [row.metadata for row in rows] == [{"a": 1}, {"a": 2}, {}, {}, {}]
    assert [bool(row.error) for row in rows] == [False] * 4 + [True]


def test_bad_rows_keep_their_places_and_say_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"image": "x.png", "prompt": "p"}).encode()
    bad = [
        b"{",
        b"[1]",
        b'{"image": "x.png"}',
        b'{"prompt": "p"}',
        b"\xff\xfe",
        b'{"prompt": 3, "image": "x"}',
    ]
    path.write_bytes(b"\n".join([good, *bad, good]))
    rows = rows_of(make_plan([path], Columns(), 3))
    assert [row.number for row in rows] == list(range(8))
    assert [bool(row.error) for row in rows] == [False, *[True] * 6, False]
    assert "no text in column prompt; it has image" in rows[3].error
    assert "no image in column image" in rows[4].error


def test_samples_of_a_shard_without_image_or_prompt_are_errors_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.png", b"1")
        add(tar, "a.txt", b"p")
        add(tar, "b.png", b"2")
        add(tar, "c.txt", b"p")
        add(tar, "d.json", b"{")
        add(tar, "d.png", b"3")
        add(tar, "e." + "long" * 60 + ".png", b"3")
        add(tar, "f.txt", b"\xff")
        add(tar, "f.webp", b"4")
    rows = rows_of(make_plan([path], Columns(), 2))
    assert [(row.id, bool(row.error)) for row in rows] == [
        ("a", False),
        ("b", True),
        ("c", True),
        ("d", True),
        ("f", False),
    ]


def test_folders_and_globs_mean_the_files_below_them_each_once_and_sorted(tmp_path: Path) -> None:
    for name in ("b", "a/c", "a"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        as_jsonl(tmp_path / name)
        (tmp_path / name / "x.png").touch()
    names = [p.relative_to(tmp_path).as_posix() for p in find_files([tmp_path, tmp_path / "*/rows.jsonl"])]
    assert names == ["a/c/rows.jsonl", "a/rows.jsonl", "b/rows.jsonl"]
    assert make_plan([tmp_path / "a", tmp_path / "b"], Columns(), 100).rows == 3 * N


def test_input_that_cannot_be_read_at_all_is_refused_before_the_work(tmp_path: Path) -> None:
    whole = as_tar(tmp_path).read_bytes()
    for name, data, message in (
        ("none.jsonl", None, "no file with an ending among .parquet, .jsonl, .csv, .tar"),
        ("odd.xlsx", b"x", "the ending must be one of"),
        ("empty.jsonl", b"\n\n", "there are no rows"),
        ("damaged.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("cut.tar", whole[:3000], "not a whole tar"),
        ("columns.csv", b"img,text\nx,y\n", "no text in column prompt; it has img, text"),
    ):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            make_plan([path], Columns(), 5)
