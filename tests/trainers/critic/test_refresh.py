"""A critic that learns anew while the policy does: versions, judges, drift, and what a checkpoint keeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rewardzoo import LocalRewards
from rewardzoo.rewards import resolve
from rewardzoo.rewards._trained import write_variant
from rewardzoo.trainers.config import PolicySection, PromptsSection, load_config
from rewardzoo.trainers.critic import refresh
from rewardzoo.trainers.dpo import DPOConfig
from rewardzoo.trainers.grpo import GRPOConfig, train
from rewardzoo.trainers.policies import Sampling
from rewardzoo.trainers.policies.loading import load_policy
from rewardzoo.trainers.prompts import load_prompts
from rewardzoo.trainers.rewards import RewardsLostError
from rewardzoo.trainers.tracking import read_metrics

from ..policies.conftest import make_policy  # noqa: TID252
from ..tiny_policy import TinyPolicy  # noqa: TID252

MINIS = Path(__file__).parents[3] / "rewards" / "minis"
HPS = "hpsv2:mini"

# What stands for the critic's training: it copies a variant that is there, and notes what it was told.
COPY = """
import shutil, sys, yaml
from pathlib import Path
settings = yaml.safe_load(Path(sys.argv[1]).read_text())
out = Path(settings["run"]["out"])
assert (Path(settings["data"]["policy"]["name_or_path"]) / "weights.pt").exists()
with Path(sys.argv[2], "told.txt").open("a") as file:
    file.write(settings["model"]["base"] + "\\n")
shutil.copytree(Path(sys.argv[2], "variant"), out, dirs_exist_ok=True)
(out / "checkpoints").mkdir()
"""
SLEEP = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A version of hpsv2:mini with other weights, as training leaves it."""
    folder = tmp_path / "made" / "variant"
    (folder / "model").mkdir(parents=True)
    state = load_file(MINIS / "hpsv2" / "model.safetensors")
    torch.manual_seed(0)
    noisy = {k: v + 0.3 * v.std() * torch.randn_like(v) if v.ndim == 2 else v for k, v in state.items()}
    save_file(noisy, folder / "model" / "model.safetensors")
    (folder / "model" / "tokenizer.json").write_bytes((MINIS / "hpsv2" / "tokenizer.json").read_bytes())
    mini = resolve(HPS)[1]
    files = {"checkpoint": "model/model.safetensors", "tokenizer": "model/tokenizer.json"}
    write_variant(folder, "hpsv2", recipe=mini.recipe, files=files, weights_license="x", config=mini.config)
    (folder / "metrics.json").write_text(json.dumps({"quality": {"validation": {"all": {"accuracy": 0.75}}}}))
    (folder / "README.md").write_text("whole")
    return folder.parent


@pytest.fixture
def copies(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have versions copied rather than trained."""
    copy = [sys.executable, "-c", COPY]
    monkeypatch.setattr(refresh, "_command", lambda settings: [*copy, str(settings), str(trained)])
    return trained


def critic_file(folder: Path, base: str = HPS, **data: Any) -> Path:
    made = {
        "policy": {"name_or_path": "mini"},
        "judge": {"reward": "imagereward:mini"},
        "train": {"source": "lab:in_domain", "count": 24},
        **data,
    }
    settings = {
        "data": {"folder": str(folder / "unused"), **made},
        "model": {"base": base, "loss": "preference", "scale": 20.0},
        "optimizer": {"lr": 1e-4, "micro_batch_size": 4},
        "run": {"out": str(folder / "unused"), "batch_size": 4, "validation_share": 0.3},
    }
    path = folder / "critic.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def looped(configured: Callable[..., GRPOConfig], tmp_path: Path) -> Callable[..., GRPOConfig]:
    """Read the tiny configuration, its reward being a critic that is refreshed."""
    critic = critic_file(tmp_path)

    def read(*overrides: str) -> GRPOConfig:
        refreshed = (f"critic={{config: {critic}, every: 3}}", f"rewards.weights={{'{HPS}': 1}}")
        fixed = ("rewards.held_out=[]", "optimizer.schedule=constant", "run.steps=5")
        return configured(*refreshed, *fixed, *overrides)

    return read


def told(trained: Path) -> list[str]:
    return (trained / "told.txt").read_text().split()


def test_the_new_version_counts_and_the_old_one_judges_the_same_pictures(looped, copies, monkeypatch) -> None:
    seen: list[tuple[np.ndarray, list[str]]] = []
    submit = LocalRewards.submit_result

    def noted(self: Any, images: Any, texts: Any, **more: Any) -> Any:
        seen.append((images, texts))
        return submit(self, images, texts, **more)

    monkeypatch.setattr(LocalRewards, "submit_result", noted)
    config = looped()
    assert train(config, TinyPolicy()) == 0
    first, second, third, fourth, fifth = read_metrics(config.run.out)
    for line in (first, second, third):
        assert not {name for name in line if "critic" in name}
    assert (fourth["critic/version"], fourth["critic/accuracy"]) == (1, 0.75)
    assert fourth["seconds/critic"] > 0
    (folder,) = (path for path in (config.run.out / "critics").iterdir() if path.is_dir())
    images, texts = seen[-1]  # of the last step
    new, old = LocalRewards([f"hpsv2:{folder}"]), LocalRewards([HPS])
    now, before = new.score(images, texts), old.score(images, texts)
    assert fifth[f"reward/{HPS}"] == pytest.approx(now.mean(), abs=1e-5)
    assert fifth["reward"] == pytest.approx(now.mean(), abs=1e-5)
    assert fifth["judge/critic-000"] == pytest.approx(before.mean(), abs=1e-5)
    assert fifth["critic/drift"] == pytest.approx(np.abs(now - before).mean(), abs=1e-5)
    ranks = [np.argsort(np.argsort(scores)) for scores in (now, before)]
    assert fifth["critic/spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=0.02)


def test_each_version_goes_on_from_the_one_before_and_old_ones_are_deleted(looped, copies) -> None:
    config = looped("run.steps=9", "critic.every=2")
    assert train(config, TinyPolicy()) == 0
    folders = sorted(path.name for path in (config.run.out / "critics").iterdir() if path.is_dir())
    assert [name[:10] for name in folders] == ["critic-002", "critic-003", "critic-004"]
    bases = told(copies)
    assert bases[0] == HPS
    assert [Path(base).name[:10] for base in bases[1:]] == ["critic-001", "critic-002", "critic-003"]
    assert bases[3] == f"hpsv2:{(config.run.out / 'critics' / folders[1]).resolve()}"
    last = read_metrics(config.run.out)[-1]
    assert {name for name in last if name.startswith("judge/")} == {"judge/critic-003"}
    assert not list((config.run.out / "critics").glob("*/checkpoints"))
    assert not list((config.run.out / "critics").glob("*/policy"))


def test_a_run_that_goes_on_has_the_versions_it_had(looped, copies) -> None:
    whole = looped("run.steps=7", "run.out=" + str(copies / "whole"))
    assert train(whole, TinyPolicy()) == 0
    cut = looped("run.steps=5", "run.out=" + str(copies / "cut"))
    assert train(cut, TinyPolicy()) == 0
    trainings = len(told(copies))
    cut = looped("run.steps=7", "run.out=" + str(copies / "cut"))
    assert train(cut, TinyPolicy()) == 0
    assert len(told(copies)) == trainings + 1  # of step 6; that of step 3 is there
    for line, other in zip(read_metrics(whole.run.out), read_metrics(cut.run.out), strict=True):
        names = [name for name in line if name.startswith(("reward", "judge", "critic"))]
        assert {name: line[name] for name in names} == {name: other[name] for name in names}
    weights = (torch.load(c.run.out / "policy" / "weights.pt", weights_only=True) for c in (whole, cut))
    one, two = weights
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_that_is_stopped_meanwhile_ends_the_critics_training_and_comes_back_to_it(
    looped, copies, monkeypatch
) -> None:
    copy = refresh._command
    monkeypatch.setattr(refresh, "_command", lambda settings: [sys.executable, "-c", SLEEP])
    config = looped("run.save_every=100")
    assert train(config, TinyPolicy()) == 128 + signal.SIGTERM
    assert [path.name for path in (config.run.out / "checkpoints").iterdir()] == ["step-000003"]
    monkeypatch.setattr(refresh, "_command", copy)
    assert train(config, TinyPolicy()) == 0
    assert [line.get("critic/version") for line in read_metrics(config.run.out)] == [None] * 3 + [1, None]


def test_a_critics_training_that_fails_ends_the_run_with_where_to_look(looped, monkeypatch) -> None:
    fail = [sys.executable, "-c", "import sys; print('no judge'); sys.exit(3)"]
    monkeypatch.setattr(refresh, "_command", lambda settings: fail)
    config = looped()
    with pytest.raises(RewardsLostError, match=r"ended with 3: see .*critic-001-\w+\.log") as caught:
        train(config, TinyPolicy())
    assert caught.value.exit_code == 1
    (log,) = (config.run.out / "critics").glob("*.log")
    assert "no judge" in log.read_text()
    assert (config.run.out / "checkpoints" / "step-000003").is_dir()


def test_a_critic_that_does_not_count_or_cannot_make_its_data_is_refused(looped, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"trains hpsv2:mini, which is none of rewards\.weights"):
        train(looped("rewards.weights={'lab:exact-share': 1}"), TinyPolicy())
    critic_file(tmp_path, policy=None, judge=None, train=None)
    with pytest.raises(ValueError, match=r"has no data\.policy"):
        train(looped(), TinyPolicy())


def test_dpo_on_pairs_of_a_file_has_no_use_for_a_critic(config_file: Path) -> None:
    words = ["critic={config: x, every: 3}", "pairs.source=pairs.jsonl"]
    settings = yaml.safe_load(config_file.read_text())
    del settings["grpo"]
    config_file.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="take iterative or online"):
        load_config(DPOConfig, config_file, words)


def test_the_critics_process_is_not_one_of_the_policys(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "ACCELERATE_USE_FSDP", "FSDP_VERSION"}
    for name in gone:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    kept = refresh._environment()
    assert kept["ACCELERATE_USE_CPU"] == "true"
    assert kept["PATH"] == os.environ["PATH"]
    assert not gone & {*kept}


@pytest.mark.slow
def test_of_two_processes_the_first_has_the_critic_trained_and_both_score_by_it(
    looped, trained, config_file: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    def start(out: str, *launcher: str) -> list[dict[str, Any]]:
        settings = looped(f"run.out={tmp_path / out}")
        words = [
            f"run.out={settings.run.out}",
            f"critic={{config: {tmp_path / 'critic.yaml'}, every: 3}}",
            f"rewards.weights={{'{HPS}': 1}}",
            "rewards.held_out=[]",
            "optimizer.schedule=constant",
            "run.steps=5",
        ]
        driver = ("-m", "tests.trainers.critic.refresh_driver", str(trained), str(config_file), *words)
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(MINIS.parents[1])}
        done = subprocess.run(
            [sys.executable, *launcher, *driver], env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return read_metrics(settings.run.out)

    two = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()))
    one, both = start("one"), start("two", *two)
    assert len(told(trained)) == 2  # once a run
    for line, other in zip(one, both, strict=True):
        for name in ("reward", "judge/critic-000", "critic/drift", "critic/version", "loss"):
            assert line.get(name, 0) == pytest.approx(other.get(name, 0), abs=1e-4), (line["step"], name)


@pytest.mark.slow
def test_a_critic_learns_from_what_the_policy_paints(configured, tmp_path, monkeypatch) -> None:
    """Nothing stands for anything: a tiny Janus, a judge, and `rewardzoo train critic` in its process."""
    monkeypatch.setenv("PYTHONPATH", str(MINIS.parents[1]))
    make_policy().save(tmp_path / "janus")
    policy = load_policy(PolicySection(name_or_path=str(tmp_path / "janus")))
    texts = [prompt.text for prompt in load_prompts(PromptsSection(source="lab:in_domain", count=24))] * 2
    uniforms = torch.rand(len(texts), policy.tokens_per_image, dtype=torch.float64)
    rolled = policy.sample(policy.encode(texts), uniforms, Sampling(1.0, 1.0, "cond"))
    judged = LocalRewards(["imagereward:mini"]).score(policy.decode(rolled.tokens), texts)
    median = float(np.median(judged))
    critic = critic_file(
        tmp_path,
        judge={"reward": "imagereward:mini", "threshold": median},
        sampling={"guidance_scale": 1},
        images_per_prompt=16,
    )
    config = configured(
        f"critic={{config: {critic}, every: 2}}", f"rewards.weights={{'{HPS}': 1}}", "run.steps=3"
    )
    assert train(config, policy) == 0
    last = read_metrics(config.run.out)[-1]
    assert last["critic/version"] == 1
    assert last["critic/drift"] > 0
    assert -1 <= last["critic/spearman"] <= 1
    assert f"reward/{HPS}" in last
    assert "judge/critic-000" in last
