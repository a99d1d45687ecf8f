"""bentofile.yaml: what it lists, and a bento that is built from it and served."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from rewardzoo import LocalRewards, RewardClient

FOLDERS = ("rewardzoo", "rewards", "services", "clients")


def requirements(root: Path, extra: str) -> set[str]:
    """What `pip install rewardzoo[extra]` asks for, the extras of ours that it names resolved."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted, found = [extra], set(project["dependencies"])
    while wanted:
        for requirement in project["optional-dependencies"][wanted.pop()]:
            if requirement.startswith("rewardzoo["):
                wanted += requirement.removeprefix("rewardzoo[").rstrip("]").split(",")
            else:
                found.add(requirement)
    return found


def test_the_bento_and_the_extra_serve_ask_for_the_same_packages(root: Path) -> None:
    bentofile = yaml.safe_load((root / "bentofile.yaml").read_text())
    assert set(bentofile["python"]["packages"]) == requirements(root, "serve")


@pytest.mark.slow
def test_a_built_bento_serves_the_scores_of_this_process(
    root: Path, tmp_path: Path, free_port, start, wait_ready, pairs
) -> None:
    source = tmp_path / "source"
    for folder in FOLDERS:
        shutil.copytree(root / folder, source / folder, symlinks=True)
    for file in ("bentofile.yaml", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy2(root / file, source / file)
    # A mark in the code, so that the answer shows whose code served: the bento's, not the checkout's.
    module = source / "rewardzoo" / "__init__.py"
    text = module.read_text()
    assert text.count('__version__ = "') == 1
    module.write_text(text.replace('__version__ = "', '__version__ = "of-the-bento-'))

    environment = {"BENTOML_HOME": str(tmp_path / "home"), "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": ""}
    built = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", ".", "--output", "tag"],
        cwd=source,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    (tag,) = [line for line in built.stdout.splitlines() if line.startswith("__tag__:")]
    shutil.rmtree(source)

    port = free_port()
    server = start(
        [
            *(sys.executable, "-m", "bentoml", "serve", tag.removeprefix("__tag__:")),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        {**environment, "REWARDZOO_REWARDS": "hpsv2:mini", "REWARDZOO_DEVICE": "cpu"},
        cwd=tmp_path,
    )
    url = f"http://127.0.0.1:{port}"
    wait_ready(url, server)
    assert httpx.get(f"{url}/v2").json()["version"].startswith("of-the-bento-")
    images, prompts = pairs
    with RewardClient(url) as client:
        served = client.score(images, prompts, reward="hpsv2:mini")
    np.testing.assert_array_equal(served, LocalRewards(["hpsv2:mini"], device="cpu").score(images, prompts))
    assert len(np.unique(served)) > 20
