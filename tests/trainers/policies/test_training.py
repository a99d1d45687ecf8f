"""A tiny Janus from a folder, through the trainer, back into a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from rewardzoo.cli import app
from rewardzoo.trainers.config import PolicySection, load_config
from rewardzoo.trainers.grpo import GRPOConfig, train
from rewardzoo.trainers.policies import JanusPolicy
from rewardzoo.trainers.policies.loading import load_policy
from rewardzoo.trainers.tracking import read_metrics

from .conftest import PROMPTS, uniforms


@pytest.fixture
def config_file(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:2]))
    settings = {
        "policy": {"name_or_path": str(folder)},
        "sampling": {"guidance_scale": 3.0},
        "prompts": {"source": str(tmp_path / "prompts.txt")},
        "rewards": {"weights": {"lab:exact-share": 1.0}},
        "optimizer": {"lr": 1e-3},
        "run": {"out": str(tmp_path / "run"), "steps": 2, "trackers": []},
        "grpo": {"prompts_per_step": 2, "group_size": 4, "advantage": "none", "beta": 0.1},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampling.logp_mode=cond"],
        ["sampling.logp_mode=cfg"],
        ["sampling.logp_mode=cfg_detach_uncond", "policy.gradient_checkpointing=true"],
        ["policy.lora.rank=4"],
    ],
    ids=lambda overrides: overrides[-1],
)
def test_what_is_sampled_is_what_is_trained(config_file: Path, overrides: list[str]) -> None:
    config = load_config(GRPOConfig, config_file, [*overrides, "prompts.count=1", "grpo.prompts_per_step=1"])
    policy = load_policy(config.policy)
    # No picture of random weights is right of "a red circle": the KL alone, of updates, is what can teach.
    assert train(config, policy) == 0
    for line in read_metrics(config.run.out):
        assert line["logp_gap"] < 1e-5
        assert line["ratio"] == pytest.approx(1, abs=1e-5)


def test_the_command_trains_and_leaves_a_policy_that_loads(config_file: Path, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["train", "grpo", "--config", str(config_file), "run.steps=1"])
    assert told.exit_code == 0, told.output
    policy = JanusPolicy.load(tmp_path / "run" / "policy")
    sampled = policy.sample(
        policy.encode(PROMPTS), uniforms(3), load_config(GRPOConfig, config_file).sampling.sampling()
    )
    assert policy.decode(sampled.tokens).dtype == "uint8"


def test_adapters_alone_are_trained_where_there_are_any(folder: Path) -> None:
    section = PolicySection.model_validate(
        {"name_or_path": str(folder), "lora": {"rank": 4, "targets": ["q_proj"]}}
    )
    trained = [name for name, p in load_policy(section).named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name and "q_proj" in name for name in trained)


def test_weights_are_in_the_dtype_that_is_asked_for(folder: Path) -> None:
    policy = load_policy(PolicySection(name_or_path=str(folder), dtype="bfloat16", train_head=False))
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in policy.janus.model.generation_head.parameters())


def test_attention_is_the_implementation_that_the_section_names(folder: Path) -> None:
    policy = load_policy(PolicySection(name_or_path=str(folder), attention="eager"))
    assert policy.janus.model.language_model.config._attn_implementation == "eager"
