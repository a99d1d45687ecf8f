"""`rewardzoo parity`: what it prints, and how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rewardzoo.cli import app
from rewardzoo.cli.parity import FIXTURES
from rewardzoo.rewards import load

INPUTS = FIXTURES.parent / "inputs"


def test_a_case_that_agrees_ends_with_0_and_writes_its_row(tmp_path: Path) -> None:
    page = tmp_path / "parity.md"
    done = CliRunner().invoke(app, ["parity", "hpsv2/antialias", "--markdown", str(page)])
    assert done.exit_code == 0, done.output
    assert "hpsv2-antialias" in done.output
    (row,) = [line for line in page.read_text().splitlines() if line.startswith("| `hpsv2/antialias`")]
    assert "hpsv2 1.2.0" in row
    assert "torchvision" in row


def test_a_case_that_does_not_agree_ends_with_1_and_names_the_pair(tmp_path: Path) -> None:
    folder = tmp_path / "fixtures" / "off"
    folder.mkdir(parents=True)
    shutil.copytree(FIXTURES / "_shared" / "hpsv2", tmp_path / "fixtures" / "_shared" / "hpsv2")
    (tmp_path / "inputs").symlink_to(INPUTS)
    row = json.loads((FIXTURES / "hpsv2-antialias" / "case.json").read_text())
    row["pairs"] = row["pairs"][:2]
    row["pairs"][1]["score"] += 0.001
    (folder / "case.json").write_text(json.dumps(row))
    done = CliRunner().invoke(app, ["parity", "--fixtures", str(tmp_path / "fixtures")])
    assert done.exit_code == 1
    assert "pair 1" in done.output


def golden(folder: Path, **scores: float) -> list[str]:
    """Write published scores of a mini and return the command's arguments."""
    (folder / "fixtures").mkdir()
    row = {
        "reward": "hpsv2:mini",
        "images": "https://example.org/images",
        "prompt": "a red circle",
        "scores": {f"{name}.png": score for name, score in scores.items()},
        "tolerance": 1e-4,
    }
    (folder / "golden.json").write_text(json.dumps([row]))
    return ["parity", "--weights", "--fixtures", str(folder / "fixtures")]


def test_published_scores_are_checked_against_the_weights_on_disk(tmp_path: Path) -> None:
    from PIL import Image

    (score,) = load("hpsv2:mini", device="cpu").score([Image.open(INPUTS / "large.png")], ["a red circle"])
    command = [*golden(tmp_path, large=score, wide=score + 1), "--images", str(INPUTS)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    large, wide = [line for line in done.output.splitlines() if ".png" in line]
    assert "✓" in large
    assert "✗" in wide


def test_pictures_that_are_not_here_are_named_with_where_they_are(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, golden(tmp_path, large=0.0))
    assert done.exit_code == 1
    assert "large.png from https://example.org/images" in " ".join(done.output.split())
    assert isinstance(done.exception, ValueError)


@pytest.mark.parametrize("options", [["--weights"], ["--full"], []])
def test_a_name_that_nothing_is_known_of_is_refused_with_those_that_are(options: list[str]) -> None:
    done = CliRunner().invoke(app, ["parity", "hpsv9", *options])
    assert isinstance(done.exception, ValueError)
    assert "hpsv9" in str(done.exception)
    assert "imagereward" in str(done.exception)
