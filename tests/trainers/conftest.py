"""Configurations of tiny runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rewardzoo.trainers.config import load_config
from rewardzoo.trainers.grpo import GRPOConfig

SETTINGS: dict[str, Any] = {
    "policy": {"name_or_path": "tiny"},
    "sampling": {"guidance_scale": 1, "batch_size": 16},
    "prompts": {"source": "lab:in_domain", "count": 20},
    "rewards": {"weights": {"lab:exact-share": 1.0}, "timeout": 5},
    "optimizer": {"lr": 0.01, "micro_batch_size": 8, "schedule": "linear", "warmup_steps": 2},
    "run": {"steps": 6, "save_every": 2, "trackers": []},
    "grpo": {"prompts_per_step": 4, "group_size": 4},
}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "run": {**SETTINGS["run"], "out": str(tmp_path / "run")}}))
    return path


@pytest.fixture
def configured(config_file: Path) -> Callable[..., GRPOConfig]:
    """Read the tiny configuration with overrides."""
    return lambda *overrides: load_config(GRPOConfig, config_file, overrides)
