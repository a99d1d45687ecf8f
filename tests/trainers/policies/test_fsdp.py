"""A policy whose weights are sharded over two processes, as `accelerate_fsdp.yaml` has them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rewardzoo.trainers.config import CONFIGS, load_config
from rewardzoo.trainers.grpo import GRPOConfig, train
from rewardzoo.trainers.policies.loading import load_policy
from rewardzoo.trainers.tracking import read_metrics

from .conftest import PROMPTS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


def settings_of(file: Path) -> dict[str, str]:
    """The environment that `accelerate launch` makes of a configuration's `fsdp_config`."""
    said = yaml.safe_load(file.read_text())["fsdp_config"]
    names = {name: name.upper() for name in said}
    names["fsdp_transformer_layer_cls_to_wrap"] = "FSDP_TRANSFORMER_CLS_TO_WRAP"
    return {"ACCELERATE_USE_FSDP": "true", **{names[name]: str(value) for name, value in said.items()}}


def test_a_sharded_policy_learns_and_goes_on_as_a_whole_one_does(
    folder: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(["a red circle", *PROMPTS[:1]]))
    settings = {
        "policy": {"name_or_path": str(folder)},
        "sampling": {"guidance_scale": 3.0},
        "prompts": {"source": str(tmp_path / "prompts.txt")},
        "rewards": {"weights": {"lab:exact-share": 1.0}},
        "optimizer": {"lr": 1e-3, "micro_batch_size": 2},
        "run": {"out": str(tmp_path / "whole"), "steps": 4, "save_every": 2, "trackers": []},
        "grpo": {"prompts_per_step": 2, "group_size": 4, "beta": 0.1, "inner_epochs": 2},
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    config = load_config(GRPOConfig, file)
    train(config, load_policy(config.policy))
    for steps in (2, 4):
        subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run"),
                *("--nproc_per_node", "2", "--master_port", str(free_port())),
                Path(__file__).with_name("fsdp_training.py"),
                *(file, f"run.steps={steps}", f"run.out={tmp_path / 'sharded'}"),
            ],
            env={**os.environ, **settings_of(CONFIGS / "accelerate_fsdp.yaml"), "PYTHONPATH": str(ROOT)},
            check=True,
        )
    for line, other in zip(read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "sharded"), strict=True):
        for name in ("loss", "kl", "grad_norm", "reward", "entropy"):
            assert line[name] == pytest.approx(other[name], abs=1e-4), (line["step"], name)
    wanted = load_file(tmp_path / "whole" / "policy" / "model.safetensors")
    torch.testing.assert_close(
        load_file(tmp_path / "sharded" / "policy" / "model.safetensors"), wanted, atol=1e-5, rtol=1e-4
    )
