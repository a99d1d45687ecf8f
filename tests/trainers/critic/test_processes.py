"""A critic's training in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from .test_train import data, settings  # noqa: F401

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
TRAIN = ("-m", "rewardzoo", "train", "critic", "--config")


def start(file: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    known = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, *TRAIN, str(file)]
    return subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, timeout=600)


def test_two_processes_reach_the_weights_of_one(
    data: Path,  # noqa: F811
    tmp_path: Path,
    free_port: Callable[[], int],
) -> None:
    found, losses = {}, {}
    two = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()))
    for name, launcher in (("one", ()), ("two", two)):
        chosen = settings(data, tmp_path / name, "hpsv2:mini", loss="preference", scale=20.0)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(chosen))
        done = start(tmp_path / f"{name}.yaml", *launcher)
        assert done.returncode == 0, done.stderr
        found[name] = load_file(tmp_path / name / "model" / "model.safetensors")
        losses[name] = json.loads((tmp_path / name / "metrics.json").read_text())["fit"]["validation_loss"]
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-3)
    base = load_file(ROOT / "rewards" / "minis" / "hpsv2" / "model.safetensors")
    # Adam makes steps of noise where the gradient is nothing but noise, so the mean is what can be compared.
    assert distance(found["two"], found["one"]) < 0.01 * distance(found["one"], base)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Mean of abs(one - other) over all weights but keys' biases, on which no score depends."""
    names = [name for name in {*one} & {*other} if not name.endswith("k_proj.bias")]
    return torch.cat([(one[name] - other[name]).abs().flatten() for name in names]).mean().item()
