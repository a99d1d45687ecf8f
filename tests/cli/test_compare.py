from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from rewardzoo.cli import app
from rewardzoo.clients.compare.summaries import Agreement, BestOfN, Preference, read_summary
from tests.clients.compare.conftest import Red, scorer_of


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Six red pictures in the current folder, and rewards that like red (or, "anti", do not)."""
    for red in range(6):
        Image.new("RGB", (4, 4), (red * 10, 0, 0)).save(tmp_path / f"{red}.png")
    asked: list[dict[str, Any]] = []

    def make_scorer(rewards: list[str], url: Any, token: Any, device: str, weights: Any, **_: Any) -> Any:
        asked.append({"rewards": rewards, "url": url, "token": token, "weights": weights})
        return scorer_of(*(Red(name, -1.0 if name == "anti" else 1.0) for name in rewards))

    monkeypatch.setattr("rewardzoo.cli.compare.make_scorer", make_scorer)
    monkeypatch.chdir(tmp_path)
    return asked


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["compare", *words])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


TWO = ("--reward", "red", "--reward", "anti", "--out", "out", "--resamples", "100")


def write_pairs() -> None:
    rows = [{"prompt": f"p{i}", "chosen": f"{2 * i + 1}.png", "rejected": f"{2 * i}.png"} for i in range(3)]
    lines(Path("prefs.jsonl"), *rows)
    Path("README.md").write_text("---\nlicense: cc0-1.0\n---\n")


def test_preference_tells_licence_and_accuracies_and_writes_the_summary(made: list[dict[str, Any]]) -> None:
    write_pairs()
    output = run("preference", "prefs.jsonl", *TWO, "--token", "secret", "--url", "http://x")
    assert "licence: cc0-1.0" in output
    assert "100.0%" in output
    summary = read_summary(Path("out/preference-prefs.json"))
    assert isinstance(summary, Preference)
    assert [a.estimate.value for a in summary.accuracies] == [1.0, 0.0]
    assert summary.data.license == "cc0-1.0"
    assert summary.made["rewardzoo"]
    assert made == [{"rewards": ["anti", "red"], "url": "http://x", "token": "secret", "weights": {}}]


def test_scores_are_shared_by_the_questions_asked_of_one_data_set(made: list[dict[str, Any]]) -> None:
    write_pairs()
    run("preference", "prefs.jsonl", *TWO)
    output = run("agreement", "prefs.jsonl", *TWO, "--reward", "third")
    assert [each["rewards"] for each in made] == [["anti", "red"], ["third"]]
    assert "-1.0000" in output
    summary = read_summary(Path("out/agreement-prefs.json"))
    assert isinstance(summary, Agreement)
    assert summary.examples
    assert all(Path("out", image).is_file() for example in summary.examples for image in example.images)
    assert "all of it was scored before" in run("preference", "prefs.jsonl", *TWO)


def test_best_of_n_joins_pools_by_split_and_asks_a_judge(made: list[dict[str, Any]]) -> None:
    for split, prompt in (("in", "p"), ("out", "q")):
        rows = [{"prompt": prompt, "image": f"{i}.png"} for i in range(3)]
        lines(Path(f"{split}.jsonl"), *rows)
    pools = ("in_domain=in.jsonl", "out_of_domain=out.jsonl")
    run("best-of-n", *pools, *TWO, "--judge", "judge", "--name", "pools")
    summary = read_summary(Path("out/best-of-n-pools.json"))
    assert isinstance(summary, BestOfN)
    assert summary.judge.name == "judge"
    ends = {(c.selector, c.split): c.value[-1] for c in summary.curves}
    assert ends["red", "in_domain"] == ends["oracle", "out_of_domain"] == 20
    assert ends["anti", "all"] == 0
    assert ends["random", "all"] == 10


def test_best_of_n_reads_a_judges_file(made: list[dict[str, Any]]) -> None:
    lines(Path("pool.jsonl"), *({"prompt": "p", "image": f"{i}.png"} for i in range(3)))
    lines(Path("said.jsonl"), *({"image": f"{i}.png", "score": i == 2} for i in range(3)))
    run("best-of-n", "pool.jsonl", *TWO, "--judge-file", "said.jsonl")
    summary = read_summary(Path("out/best-of-n-pool.json"))
    assert isinstance(summary, BestOfN)
    assert summary.judge.name == "said.jsonl"
    assert {g.reward: g.oracle_gap.value for g in summary.gaps} == {"red": 0, "anti": 1}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pool.jsonl", "--judge", "red"), "cannot judge itself"),
        (("pool.jsonl", "--judge", "x", "--judge-file", "y"), "not both"),
        (("a.jsonl", "b.jsonl"), "needs a split of its own"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_scored(
    words: tuple[str, ...], said: str, made: list[dict[str, Any]]
) -> None:
    result = CliRunner().invoke(app, ["compare", "best-of-n", *words, *TWO])
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())
    assert not made


def test_a_missing_extra_is_named(made: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewardzoo.errors.find_spec", lambda module: None if module == "scipy" else object())
    result = CliRunner().invoke(app, ["compare", "agreement", "x.jsonl", *TWO])
    assert "pip install 'rewardzoo[compare]'" in str(result.exception)


def test_a_token_is_not_kept_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewardzoo.cli.compare import _made

    monkeypatch.setattr("sys.argv", ["rewardzoo", "compare", "--token", "secret", "--token=secret", "x y"])
    assert "secret" not in _made()["command"]
    assert _made()["command"].endswith("'x y'")
