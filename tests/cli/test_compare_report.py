"""`rewardzoo compare probes | outcomes | report`, run in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rewardzoo.cli import app
from rewardzoo.clients.compare.outcomes import Outcomes
from rewardzoo.clients.compare.probe_effects import Probes
from rewardzoo.clients.compare.summaries import read_summaries
from rewardzoo.trainers.lab.preferences import write_preferences


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs as our trainers leave them."""
    for seed in (0, 1):
        folder = tmp_path / "runs" / f"seed-{seed}"
        folder.mkdir(parents=True)
        rewards = "rewards: {weights: {'hpsv2:mini': 1}, held_out: ['lab:exact']}"
        (folder / "config.yaml").write_text(f"{rewards}\nrun: {{seed: {seed}}}\ngrpo: {{}}\n")
        rows = [
            {"step": s, "reward": s / 10, "eval/out_of_domain/lab:exact": 0.5 + 0.01 * s + 0.02 * seed}
            for s in range(11)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "runs"


def test_probes_and_outcomes_become_one_report(tmp_path: Path, runs: Path) -> None:
    table = write_preferences(tmp_path / "lab", 2, seed=0, splits=["in_domain"])
    out = tmp_path / "out"
    reward = ("--reward", "clipscore:mini")
    options = ("--paraphrases", "lab", "--resamples", 100, "--out", out)
    done = run("probes", table, *reward, *options)
    assert done.exit_code == 0, done.output
    again = run("probes", table, *reward, *options)
    assert again.exit_code == 0, again.output
    assert "blank image" in again.stdout
    (probed,) = read_summaries(out)
    assert isinstance(probed, Probes)
    assert probed.data.items == 4
    assert {"paraphrase", "unrelated prompt", "blank image"} <= {effect.probe for effect in probed.effects}
    assert probed.effect("blank image", "clipscore:mini").shift.value < 0

    done = run(
        "outcomes", runs, "--spread", "lab:exact=0.2", "--name", "grpo", "--resamples", 100, "--out", out
    )
    assert done.exit_code == 0, done.output
    (found,) = (s for s in read_summaries(out) if isinstance(s, Outcomes))
    assert found.cells[0].gain.value == pytest.approx(0.1 / 0.2)

    done = run("report", out, "--title", "Minis")
    assert done.exit_code == 0, done.output
    page = (out / "report.html").read_text()
    for word in ("<h1>Minis</h1>", "Probes: pairs", "RL outcomes: grpo", "weights sha256", "How to get this"):
        assert word in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["outcomes", "a.csv"], "--column step=global_step"),
        (["outcomes", "nowhere"], "no run in nowhere"),
        (["outcomes", "a.csv", "--column", "step"], "NAME=VALUE, got 'step'"),
        (["outcomes", "runs", "--spread", "a=high"], "takes a number, got 'high'"),
    ],
)
def test_a_mistake_is_told_with_the_way_out(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments, "--out", tmp_path)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)


def test_a_report_of_nothing_says_what_to_do_first(tmp_path: Path) -> None:
    assert "run `rewardzoo compare` into it first" in str(run("report", tmp_path).exception)
