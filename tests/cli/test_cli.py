"""The command line, run in this process."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from rewardzoo.cli import app
from rewardzoo.rewards import load
from rewardzoo.rewards.hpsv2 import HPSv2
from rewardzoo.services import ServeConfig
from rewardzoo.trainers.lab import triples


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i, triple in enumerate(triples(2, seed=1)):
        Image.fromarray(triple.right).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    return tmp_path


def test_list_shows_names_licences_ranges_and_what_is_downloaded() -> None:
    shown = run("list").stdout
    for word in ("hpsv2:v2.1", "imagereward:mini", "Apache-2.0", "-1 … 1", "shipped", "not downloaded"):
        assert word in shown


def test_list_says_which_end_of_a_range_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = HPSv2.spec
    upside_down = replace(spec, name="upside-down", higher_is_better=False)
    monkeypatch.setattr("rewardzoo.rewards.specs", lambda: [spec, upside_down])
    rows = [line for line in run("list").stdout.splitlines() if "mini" in line]
    assert [("higher" in row, "lower" in row) for row in rows] == [(True, False), (False, True)]


def test_score_prints_the_models_own_scores(pictures: Path) -> None:
    result = run("score", pictures / "0.png", "--prompt", "a red circle", "--reward", "hpsv2:mini")
    expected = load("hpsv2:mini", device="cpu").score(
        [np.asarray(Image.open(pictures / "0.png"))], ["a red circle"]
    )
    assert result.exit_code == 0
    assert f"{expected[0]:.4f}" in result.stdout


def test_serve_leaves_to_the_environment_what_no_option_says(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[ServeConfig] = []
    monkeypatch.setattr("rewardzoo.services.launch.serve", lambda config, **_: configs.append(config))
    monkeypatch.setenv("REWARDZOO_DEVICE", "cuda:1")
    monkeypatch.setenv("REWARDZOO_WEIGHTS", '{"hpsv2:mini": "/there"}')
    assert run("serve", "hpsv2:mini").exit_code == 0
    assert run("serve", "hpsv2:mini", "--device", "cpu", "--weights", "hpsv2:mini=/here").exit_code == 0
    monkeypatch.delenv("REWARDZOO_DEVICE")
    assert run("serve", "hpsv2:mini").exit_code == 0
    assert [config.device for config in configs] == ["cuda:1", "cpu", "auto"]
    assert [str(config.weights["hpsv2:mini"]) for config in configs] == ["/there", "/here", "/there"]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_manifest_is_scored_to_a_file_with_bad_rows_kept(pictures: Path, ending: str) -> None:
    rows = [
        {"image": "0.png", "prompt": "a red circle", "id": "x"},
        {"image": "bad.png", "prompt": "a red circle", "id": "y"},
        {"image": "gone.png", "prompt": "a red circle", "id": "z"},
        {"image": "1.png", "prompt": "two blue squares", "id": "w"},
    ]
    manifest = pictures / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = pictures / f"scores.{ending}"
    result = run("score", "--manifest", manifest, "--reward", "hpsv2:mini", "--out", out)
    assert result.exit_code == 1
    assert "2 of 4 rows" in result.stderr
    from rewardzoo.cli.manifest import _format

    written = _format(out)[0](out)
    assert [row["id"] for row in written] == ["x", "y", "z", "w"]
    assert [bool(row["hpsv2:mini"]) for row in written] == [True, False, False, True]
    assert [bool(row["error"]) for row in written] == [False, True, True, False]
    assert "damaged" in written[1]["error"]
    assert "gone.png" in written[2]["error"]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_metadata_of_a_manifest_reaches_the_reward_and_details_come_back(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    from rewardzoo.cli.manifest import _format
    from rewardzoo.rewards import Score
    from rewardzoo.rewards.hpsv2 import HPSv2

    monkeypatch.setattr(HPSv2, "prepare_prompt", lambda self, prompt, metadata: metadata.get("say", ""))
    monkeypatch.setattr(
        HPSv2, "evaluate", lambda self, batch: [Score(1.0, {"said": a} if a else {}) for a in batch.asked]
    )
    rows = [
        {"image": "0.png", "prompt": "a", "metadata": {"say": "é"}},
        {"image": "1.png", "prompt": "a", "metadata": {}},
    ]
    manifest, out = pictures / f"rows.{ending}", pictures / f"scores.{ending}"
    write = _format(manifest)[1]
    write(rows, manifest)
    result = run("score", "--manifest", manifest, "--reward", "hpsv2:mini", "--out", out)
    assert result.exit_code == 0, result.output
    written = [row["hpsv2:mini.details"] for row in _format(out)[0](out)]
    if ending != "jsonl":
        written = [json.loads(text) if text else None for text in written]
    assert written == [{"said": "é"}, None]


def test_a_reward_without_details_adds_no_column(pictures: Path) -> None:
    out = pictures / "scores.jsonl"
    run("score", pictures / "0.png", "--prompt", "a", "--reward", "hpsv2:mini", "--out", out)
    (row,) = map(json.loads, out.read_text().splitlines())
    assert set(row) == {"image", "prompt", "hpsv2:mini"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "a.png", "--reward", "hpsv2:mini"], "--prompt"),
        (["score", "a.png", "--prompt", "a"], "--reward"),
        (["score", "a.png", "--prompt", "a", "--reward", "hpsv2:mini", "--out", "a.xlsx"], ".jsonl, .csv"),
        (["score", "a.png", "--prompt", "a", "--reward", "hpsv2"], "hpsv2:v2.0"),
        (["score", "a.png", "--prompt", "a", "--reward", "hpsv22:v1"], "did you mean 'hpsv2'"),
        (["serve", "hpsv2:mini", "--weights", "nonsense"], "NAME=PATH"),
        (["serve", "hpsv2:mini", "--host", "0.0.0.0"], "REWARDZOO_TOKEN"),
    ],
)
def test_a_mistake_is_told_with_the_way_out(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"image": "a.png"}\n', "row 1: no text in column prompt"),
        ("rows.jsonl", '{"image": "a.png"\n', "line 1: not JSON"),
        ("rows.csv", "picture,prompt\na.png,a\n", "no text in column image"),
        ("rows.jsonl", '{"image": "a.png", "prompt": "a", "metadata": [1]}\n', "row 1: the metadata must be"),
        ("rows.csv", "image,prompt,metadata\na.png,a,{\n", "row 1: the metadata is not JSON"),
        ("rows.txt", "", "the ending must be one of"),
    ],
)
def test_a_broken_manifest_is_refused_by_row(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    result = run("score", "--manifest", tmp_path / name, "--reward", "hpsv2:mini")
    assert message in str(result.exception)


def test_doctor_names_versions_weights_and_a_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("doctor", "--port", port)
    assert result.exit_code == 1
    for word in ("torch", "bentoml", f"port {port}", "not free", "--port", "weights of hpsv2:v2.1"):
        assert word in result.stdout
    assert "imagereward:mini" in result.stdout


@pytest.mark.slow
def test_triton_export_writes_a_repository_and_says_how_to_start_it(tmp_path: Path) -> None:
    out = tmp_path / "repo"
    options = ("--device", "cpu", "--max-batch", 16, "--delay-us", 500, "--instances", 2)
    result = run("triton-export", "hpsv2:mini", "clipscore:mini", "--out", out, *options)
    assert result.exit_code == 0
    assert f"tritonserver --model-repository={out}" in result.stdout
    config = (out / "hpsv2.mini" / "config.pbtxt").read_text()
    for line in ("max_batch_size: 16", "max_queue_delay_microseconds: 500", "count: 2 kind: KIND_CPU"):
        assert line in config
    assert (out / "clipscore.mini" / "1" / "model.py").is_file()


def test_demo_serves_ranks_writes_a_page_and_stops(tmp_path: Path) -> None:
    result = run("demo", "--out", tmp_path, "--prompts", 2)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "index.html").read_text()
    assert page.count("<figure") == 10
    assert page.count("data:image/png;base64,") == 10
    assert page.count('class="right"') == 2, "the exact judge finds one right picture a prompt"
    url = next(word for word in result.stdout.split() if word.startswith("http://127.0.0.1:"))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0
