"""Bulk runs with the actors' work done in this process: checkpoints, resuming, refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

import rewardzoo.rewards
from rewardzoo import LocalRewards
from rewardzoo.cli import app
from rewardzoo.errors import RewardZooError, UnknownRewardError
from rewardzoo.services.bulk import BulkConfig, BulkRun, cluster
from rewardzoo.services.bulk.actor import ChunkScorer, Job
from rewardzoo.services.bulk.checkpoint import MANIFEST, Output
from rewardzoo.services.bulk.plan import Chunk
from tests.services.bulk.pictures import KINDS, pictures, write

NAME = "hpsv2:mini"
ROWS = [*pictures(9), ("bad", b"\x89PNG\r\n\x1a\n broken", "a red circle")]


@pytest.fixture(autouse=True)
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stand in for Ray; the chunks that were begun."""
    chunks: list[int] = []

    def score(job: Job, some: Sequence[Chunk], _: object) -> Iterator[dict[str, Any]]:
        scorer = ChunkScorer(job)
        for chunk in some:
            chunks.append(chunk.index)
            yield from scorer(pyarrow.Table.from_pylist([asdict(chunk)])).to_pylist()

    monkeypatch.setattr(cluster, "cluster", lambda address, actors: nullcontext())
    monkeypatch.setattr(cluster, "share_out", lambda *_, **__: cluster.Shares(1, 1, 0))
    monkeypatch.setattr(cluster, "score_chunks", score)
    monkeypatch.setattr(rewardzoo.rewards, "load", loaded)
    return chunks


@cache
def _loaded(name: str, device: str) -> Any:
    return _load(name, device=device)


_load = rewardzoo.rewards.load


def loaded(name: str, *, device: str, weights: Path | None = None) -> Any:
    return _loaded(name, device) if weights is None else _load(name, device=device, weights=weights)


def config(folder: Path, **options: Any) -> BulkConfig:
    settings = {"rewards": [NAME], "out": folder / "out", "device": "cpu", "chunk_rows": 3, **options}
    if "inputs" not in settings:
        source = folder / "in" / "rows.jsonl"
        settings["inputs"] = [source if source.exists() else write(folder / "in", "jsonl", ROWS)]
    return BulkConfig(**settings)


def run(wanted: BulkConfig, chunks: int = 1000) -> BulkRun:
    """Score that many chunks and stop."""
    with BulkRun(wanted) as started:
        for _ in zip(range(chunks), started.score(), strict=False):
            pass
    return started


@cache
def expected() -> list[float]:
    with LocalRewards([NAME], device="cpu") as rewards:
        scores = rewards.score([r[1] for r in ROWS], [r[2] for r in ROWS], on_error="nan")
    return [float(score) for score in scores]


def check(folder: Path) -> None:
    rows = parquet.read_table(folder).to_pylist()
    assert [(row["row"], row["id"], row["prompt"]) for row in rows] == [
        (i, key, prompt) for i, (key, _, prompt) in enumerate(ROWS)
    ]
    scores = [np.nan if row[NAME] is None else row[NAME] for row in rows]
    np.testing.assert_allclose(scores, expected(), atol=1e-5)
    assert [row[f"{NAME}.error"] is not None for row in rows] == [*[False] * 9, True]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_gets_in_process_scores_with_bad_rows_kept(tmp_path: Path, kind: str) -> None:
    summary = run(config(tmp_path, inputs=[write(tmp_path / "in", kind, ROWS)])).summary()
    assert (summary.rows, summary.scored, summary.failed) == (10, 10, {NAME: 1})
    check(tmp_path / "out")


def test_a_part_has_the_types_and_the_provenance_of_its_scores(tmp_path: Path) -> None:
    run(config(tmp_path, rewards=[NAME, "imagereward:mini"]))
    part = parquet.read_table(tmp_path / "out" / "part-000000.parquet")
    assert part.schema.field(NAME).type == pyarrow.float32()
    for name in (NAME, "imagereward:mini"):
        assert {name, f"{name}.error", f"{name}.details"} <= set(part.column_names)
        told = json.loads(part.schema.metadata[b"rewardzoo"])["provenance"][name]
        assert told == loaded(name, device="cpu").provenance()


def test_a_run_that_was_stopped_goes_on_with_what_is_left(tmp_path: Path, begun: list[int]) -> None:
    run(config(tmp_path), chunks=2)
    before = {path: path.stat().st_ino for path in (tmp_path / "out").glob("part-*")}
    again = run(config(tmp_path, chunk_rows=None))
    assert begun == [0, 1, 2, 3]
    assert {path: path.stat().st_ino for path in before} == before
    assert again.summary().scored == 4
    check(tmp_path / "out")


def test_a_finished_run_does_nothing_and_says_so(tmp_path: Path, begun: list[int]) -> None:
    source = config(tmp_path).inputs[0]
    words = ["bulk", str(source), "--reward", NAME, "--out", str(tmp_path / "out"), "--device", "cpu"]
    first = CliRunner().invoke(app, words)
    second = CliRunner().invoke(app, words)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "10 of them in" in first.stderr
    assert "nothing to do" in second.stderr
    assert f"without a score: {NAME} 1" in second.stderr
    assert begun == [0]


def test_the_command_fails_when_no_row_has_a_score(tmp_path: Path) -> None:
    source = write(tmp_path / "in", "jsonl", [("a", b"", "p"), ("b", b"", "p")])
    words = ["bulk", str(source), "--reward", NAME, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert CliRunner().invoke(app, words).exit_code == 1


def test_ctrl_c_leaves_a_state_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = config(tmp_path).inputs[0]
    whole = cluster.score_chunks

    def interrupted(*arguments: Any) -> Iterator[dict[str, Any]]:
        yield next(whole(*arguments))
        raise KeyboardInterrupt

    words = ["bulk", str(source), "--reward", NAME, "--out", str(tmp_path / "out"), "--chunk-rows", "3"]
    monkeypatch.setattr(cluster, "score_chunks", interrupted)
    stopped = CliRunner().invoke(app, words)
    monkeypatch.setattr(cluster, "score_chunks", whole)
    assert stopped.exit_code == 130
    assert "stopped at 3 of 10 rows; the same command goes on" in stopped.stderr
    assert CliRunner().invoke(app, words).exit_code == 0
    check(tmp_path / "out")


def test_what_a_killed_writer_left_and_a_damaged_part_are_scored_again(
    tmp_path: Path, begun: list[int]
) -> None:
    run(config(tmp_path))
    out = tmp_path / "out"
    (out / ".part-000001.parquet.0123.tmp").write_bytes(b"PAR1 half")
    whole = (out / "part-000001.parquet").read_bytes()
    (out / "part-000001.parquet").write_bytes(whole[: len(whole) // 2])
    (out / "part-000003.parquet").unlink()
    run(config(tmp_path))
    assert begun == [0, 1, 2, 3, 1, 3]
    assert not list(out.glob(".*.tmp"))
    assert not list(out.glob(".attempts-*"))
    check(out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewards": ["imagereward:mini"]}, "was begun with rewards"),
        ({"rewards": [NAME, "imagereward:mini"]}, "was begun with rewards"),
        ({"chunk_rows": 4}, "was begun with chunk_rows 3, now 4"),
    ],
)
def test_going_on_with_something_else_is_refused_with_the_way_out(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    run(config(tmp_path), chunks=1)
    with pytest.raises(ValueError, match=rf"{message}.*give what .*{MANIFEST} has, or choose another --out"):
        run(config(tmp_path, **options))


def test_other_weights_are_refused(tmp_path: Path) -> None:
    run(config(tmp_path), chunks=1)
    shipped = Path(rewardzoo.rewards.__file__).parent / "minis" / "hpsv2" / "model.safetensors"
    other = tmp_path / "other.safetensors"
    other.write_bytes(shipped.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"was begun with rewards .*choose another --out"):
        run(config(tmp_path, weights={NAME: other}))


@pytest.mark.parametrize("change", ["changed since", "is missing", "is new"])
def test_other_input_is_refused_by_the_file_that_differs(tmp_path: Path, change: str) -> None:
    for name in ("a", "b"):
        write(tmp_path / "in" / name, "jsonl", ROWS[:4])
    run(config(tmp_path, inputs=[tmp_path / "in"]), chunks=1)
    if change == "is missing":
        (tmp_path / "in" / "b" / "rows.jsonl").unlink()
    else:
        write(tmp_path / "in" / ("b" if change == "changed since" else "c"), "jsonl", ROWS[:3])
    where = "c" if change == "is new" else "b/rows.jsonl"
    with pytest.raises(ValueError, match=f"other input: .*{where}.*{change}"):
        run(config(tmp_path, inputs=[tmp_path / "in"]))


def test_scores_of_another_precision_are_not_mixed_in(tmp_path: Path) -> None:
    run(config(tmp_path), chunks=1)
    part = tmp_path / "out" / "part-000000.parquet"
    table = parquet.read_table(part)
    note = table.schema.metadata[b"rewardzoo"].replace(b"float32", b"bfloat16")
    parquet.write_table(table.replace_schema_metadata({b"rewardzoo": note}), part)
    with pytest.raises(RewardZooError, match="has scores of hpsv2:mini in bfloat16"):
        run(config(tmp_path))


def test_two_runs_cannot_write_to_one_folder(tmp_path: Path) -> None:
    with (
        BulkRun(config(tmp_path)),
        pytest.raises(ValueError, match="another run is writing"),
        BulkRun(config(tmp_path)),
    ):
        pass


def test_parts_that_belong_to_no_run_are_left_alone(tmp_path: Path) -> None:
    run(config(tmp_path))
    (tmp_path / "out" / MANIFEST).unlink()
    with pytest.raises(ValueError, match="choose another --out"):
        run(config(tmp_path))
    check(tmp_path / "out")


def test_a_chunk_that_kills_who_scores_it_ends_the_run_with_its_name(tmp_path: Path) -> None:
    wanted = config(tmp_path)
    with BulkRun(wanted) as started:
        (tmp_path / "out" / ".attempts-000000").write_bytes(b"...")
        with pytest.raises(RewardZooError, match=r"rows.jsonl, rows 0 to 2: .* died 3 times.*start again"):
            list(started.score())
    run(wanted)  # the next start forgets the attempts
    check(tmp_path / "out")


def test_a_chunk_whose_part_is_there_is_not_scored_again_by_whoever_gets_it(tmp_path: Path) -> None:
    run(config(tmp_path))
    done = Output(tmp_path / "out").read_done(1)
    nothing: Any = None
    job = Job(nothing, tmp_path / "out", nothing, [], {}, "cpu", None, 1, {}, {})
    assert ChunkScorer(job).score(Chunk(1, "rows.jsonl", 3, 6, 0)) == done


def test_a_file_that_shrinks_under_the_run_ends_it(tmp_path: Path) -> None:
    wanted = config(tmp_path)
    source = Path(wanted.inputs[0])
    with BulkRun(wanted) as started:
        source.write_bytes(b"".join(source.read_bytes().splitlines(keepends=True)[:7]))
        with pytest.raises(RewardZooError, match="the file has changed"):
            list(started.score())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewards": []}, "no rewards given"),
        ({"weights": {"pickscore:mini": Path("x")}}, "not among"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"actors": -1}, "actors must be at least 1, got -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_output_inside_the_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="is inside the input"):
        config(tmp_path, inputs=[tmp_path / "in"], out=tmp_path / "in" / "out")


def test_a_reward_that_does_not_exist_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(UnknownRewardError, match="did you mean 'hpsv2'"):
        run(config(tmp_path, rewards=["hpsv22:mini"]))
    assert "out" not in os.listdir(tmp_path) or MANIFEST not in os.listdir(tmp_path / "out")
