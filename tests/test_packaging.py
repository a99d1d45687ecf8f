"""What users install, in environments of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("rewards", "services", "clients", "trainers", "rewardzoo")


def clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_tree(to: Path) -> None:
    """The checkout as git sees it, its links left out."""
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder,
            to / folder,
            ignore=lambda at, names: [n for n in names if n == "__pycache__" or (Path(at) / n).is_symlink()],
        )


def test_a_tree_without_links_works(tmp_path: Path) -> None:
    copy_tree(tmp_path)
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    where = run(
        sys.executable,
        "-c",
        "import rewardzoo.rewards, rewardzoo.clients, rewardzoo.trainers.lab, rewardzoo.services as s;"
        "print(s.__file__); print(len(rewardzoo.rewards.load('hpsv2:mini').score([], [])))",
        cwd=tmp_path,
    )
    assert str(tmp_path) in where


def test_the_links_are_relative_and_lead_to_the_folders_beside() -> None:
    for folder in FOLDERS[:-1]:
        assert os.readlink(ROOT / "rewardzoo" / folder) == f"../{folder}"


@pytest.mark.slow
@pytest.mark.parametrize("through_sdist", [False, True], ids=["wheel", "sdist to wheel"])
def test_an_empty_environment_takes_the_wheel_and_runs_the_client(
    tmp_path: Path, through_sdist: bool
) -> None:
    source = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    dist = tmp_path / "dist"
    # Without --wheel, build makes the source distribution and the wheel from it.
    run(sys.executable, "-m", "build", "--outdir", dist, *([] if through_sdist else ["--wheel"]), cwd=source)
    (wheel,) = dist.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    shown = run(tmp_path / "venv" / "bin" / "rewardzoo", "--help", cwd=tmp_path)
    assert "serve" in shown
    script = """
import sys
from pathlib import Path
import rewardzoo
from rewardzoo import RewardClient
from rewardzoo.errors import MissingExtraError
assert "site-packages" in rewardzoo.__file__, rewardzoo.__file__
heavy = {"torch", "bentoml", "transformers", "scipy"} & set(sys.modules)
assert not heavy, heavy
here = Path(rewardzoo.__file__).parent
assert (here / "rewards/minis/hpsv2/model.safetensors").is_file()
assert (here / "rewards/minis/hpsv3/processor/tokenizer.json").is_file()
assert (here / "cli/contact_sheet.html.j2").is_file() and (here / "py.typed").is_file()
assert all((here / "services" / name).is_file() for name in ("board.html.j2", "page.css", "page.js"))
try:
    import rewardzoo.rewards
except MissingExtraError as error:
    print(error)
"""
    assert "pip install 'rewardzoo[serve]'" in run(python, "-c", script, cwd=tmp_path)
