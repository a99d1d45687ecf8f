"""DPO on a policy of a few hundred weights, whose pictures are scored by how red they are."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rewardzoo.local import LocalRewards
from rewardzoo.trainers import dpo
from rewardzoo.trainers.candidates import Candidates
from rewardzoo.trainers.config import ConfigError, load_config
from rewardzoo.trainers.dpo import DPOConfig, train
from rewardzoo.trainers.preferences import Preferences
from rewardzoo.trainers.rewards import Rewards
from rewardzoo.trainers.run import Run
from rewardzoo.trainers.tracking import read_metrics

from .redness import Redness
from .tiny_policy import COLORS, TinyPolicy

STEPS = 12


@pytest.fixture(autouse=True)
def redness(monkeypatch):
    reward = Redness()
    monkeypatch.setattr(Rewards, "_connect", lambda self, names: LocalRewards.of([reward]))
    return reward


@pytest.fixture
def file(tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"paint number {i}\n" for i in range(40)))
    file = tmp_path / "config.yaml"
    file.write_text(f"""
policy: {{name_or_path: tiny}}
sampling: {{guidance_scale: 1.0, batch_size: 16}}
prompts: {{source: {tmp_path}/prompts.txt}}
rewards: {{weights: {{redness: 1.0}}}}
optimizer: {{lr: 0.03, micro_batch_size: 8}}
pairs: {{rounds: 3, prompts_per_round: 24, candidates: 4, batch_size: 8, shard: 8}}
run: {{out: {tmp_path}/run, steps: {STEPS}, save_every: 100, trackers: [], threads: 1}}
""")
    return file


@pytest.fixture
def config(file):
    return lambda *overrides: load_config(DPOConfig, file, overrides)


def rows(config):
    return read_metrics(config.run.out)


def weights(config):
    return torch.load(config.run.out / "policy" / "weights.pt")


class Killed(BaseException):
    """What no handler of the trainer's catches, as it would not catch SIGKILL."""


def kill_at(monkeypatch, owner, method, call):
    """Have a method end the process, as it were, the given time that it is called."""
    original, calls = getattr(owner, method), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, counted)
    return calls


@pytest.mark.parametrize(
    "overrides",
    [
        ["pairs.rounds=3"],
        ["pairs.source=online", "pairs.prompts_per_round=8"],
        ["dpo.loss=sigmoid_norm", "dpo.beta=3", "pairs.mode=topk_bottomk", "pairs.per_prompt=2"],
        ["dpo.loss=simpo", "dpo.beta=3", "dpo.gamma=0.2"],
        ["dpo.loss=ipo", "dpo.beta=1"],
        ["dpo.loss=hinge", "dpo.beta=0.2", "dpo.sft=0.05"],
        ["pairs.mode=random_yes_no", "pairs.threshold=0.2"],
    ],
)
def test_what_is_preferred_becomes_likelier(config, overrides):
    settings = config("run.steps=30", *overrides)
    assert train(settings, TinyPolicy()) == 0
    rewards = [row["reward"] for row in rows(settings) if "reward" in row]
    assert rewards[-1] > rewards[0] + 0.2


def test_each_round_begins_at_its_own_reference(config):
    settings = config("pairs.condition_dropout=0.5")
    train(settings, TinyPolicy())
    found = rows(settings)
    for row in found[:: STEPS // 3]:  # a policy that is its own reference, with and without prompts
        assert row["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert row["margin"] == pytest.approx(0, abs=1e-4)
        assert row["chosen_drift"] == pytest.approx(0, abs=1e-4)
        assert row["slope"] == pytest.approx(1, abs=1e-4)
    assert [row["round"] for row in found if "round" in row] == [0, 1, 2]
    assert found[3]["margin"] > 0.05
    assert found[3]["accuracy"] > 0.5


def test_online_reference_stays_the_policy_as_it_began(config):
    settings = config("pairs.source=online", "pairs.prompts_per_round=8", "dpo.beta=0.01")
    train(settings, TinyPolicy())
    found = rows(settings)
    assert found[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert found[-1]["chosen_drift"] > 1


def test_rewards_of_candidates_and_what_gave_no_pair_are_logged(config, redness):
    redness.fails = lambda image: (image[:8, :8] == COLORS[0]).all()
    settings = config("pairs.min_gap=0.1", "run.steps=3")
    train(settings, TinyPolicy())
    first = rows(settings)[0]
    assert first["reward"] == first["reward/redness"]
    assert 0 < first["failed"] < 0.5
    assert first["pairs"] + sum(v for name, v in first.items() if name.startswith("skipped/")) == 24
    assert first["gap"] >= 0.1
    assert first["epoch"] == pytest.approx(8 / first["pairs"])


def test_an_epoch_takes_each_pair_once(config, monkeypatch):
    settings = config("pairs.rounds=1", "pairs.batch_size=6", "run.steps=8")
    seen = []
    original = dpo._update
    monkeypatch.setattr(dpo, "_update", lambda run, pairs: seen.append(pairs) or original(run, pairs))
    train(settings, TinyPolicy())
    (file,) = (settings.run.out / "rounds").glob("*/pairs.parquet")
    kept = Preferences.load(file)
    assert len(kept) == 24
    for epoch in (seen[:4], seen[4:]):
        assert sorted(p for pairs in epoch for p in pairs.prompts) == sorted(kept.prompts)
    assert seen[0].prompts != seen[4].prompts


@pytest.mark.parametrize("source", ["iterative", "online", "file"])
@pytest.mark.parametrize("at", [3, 6, 7])
def test_run_that_is_killed_and_resumed_reaches_the_same_weights(config, monkeypatch, tmp_path, source, at):
    if source == "file":
        source = write_pairs(tmp_path / "pairs.parquet")
    overrides = [f"pairs.source={source}", "run.save_every=2"]
    whole = config(f"run.out={tmp_path}/whole", *overrides)
    train(whole, TinyPolicy())
    settings = config(*overrides)
    with monkeypatch.context() as patched:
        kill_at(patched, Run, "update", at)
        with pytest.raises(Killed):
            train(settings, TinyPolicy())
    assert not (settings.run.out / "policy").exists()
    # Online learns from the policy as it began, so it is given that; all else is in the checkpoint.
    train(settings, TinyPolicy(seed=0 if source == "online" else 9))
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(settings)[name]), name
    assert [row["loss"] for row in rows(whole)] == [row["loss"] for row in rows(settings)]


def write_pairs(path):
    generator = np.random.default_rng(0)
    good, bad = generator.integers(0, 2, (30, 16)), generator.integers(1, 6, (30, 16))
    Preferences.of([f"p {i}" for i in range(30)], good.astype(np.int32), bad.astype(np.int32)).save(path)
    return path


@pytest.mark.parametrize(("round_", "shards_before"), [(0, 2), (1, 1)])
def test_run_that_is_killed_while_sampling_does_not_sample_again_what_it_has(
    config, monkeypatch, tmp_path, round_, shards_before
):
    whole = config(f"run.out={tmp_path}/whole")
    train(whole, TinyPolicy())
    settings = config()
    with monkeypatch.context() as patched:
        kill_at(patched, Candidates, "save", 3 * round_ + shards_before + 1)
        with pytest.raises(Killed):
            train(settings, TinyPolicy())
    with monkeypatch.context() as patched:
        calls = kill_at(patched, TinyPolicy, "sample", -1)
        train(settings, TinyPolicy())
    batches_a_shard = 8 * 4 // 16
    assert len(calls) == (3 * (3 - round_) - shards_before) * batches_a_shard
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(settings)[name]), name


def test_candidates_of_other_weights_are_sampled_anew(config, monkeypatch):
    settings = config()
    with monkeypatch.context() as patched:
        kill_at(patched, Run, "update", 1)
        with pytest.raises(Killed):
            train(settings, TinyPolicy())
    old = {path.name for path in (settings.run.out / "rounds").iterdir()}
    train(settings, TinyPolicy(seed=1))
    names = sorted(path.name for path in (settings.run.out / "rounds").iterdir())
    assert [name[:9] for name in names] == ["round-000", "round-001", "round-002"]
    assert not old & set(names)


def test_signal_while_candidates_are_sampled_stops_soon_and_loses_nothing(config, monkeypatch, tmp_path):
    whole = config(f"run.out={tmp_path}/whole")
    train(whole, TinyPolicy())
    settings = config()
    original, saved = Candidates.save, []

    def save(self, path):
        original(self, path)
        saved.append(path)
        if len(saved) == 4:  # the first shard of the second round
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Candidates, "save", save)
    assert train(settings, TinyPolicy()) == 128 + signal.SIGTERM
    assert len(saved) == 4
    assert train(settings, TinyPolicy()) == 0
    assert len(saved) == 9
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(settings)[name]), name


def test_first_round_without_a_pair_is_an_error_that_says_why(config, redness):
    redness.fails = lambda image: len(np.unique(image)) > 0 and image[0, 0, 0] != 220
    with pytest.raises(ValueError, match=r"no prompt gave a pair.*skipped/small_gap"):
        train(config("pairs.min_gap=0.9"), TinyPolicy())


def test_later_round_without_a_pair_changes_nothing(config, monkeypatch, caplog):
    settings = config("run.steps=6", "pairs.rounds=2")
    original = Candidates.totals

    def totals(self, run):
        found = original(self, run)
        return found if run.step == 0 else np.ones_like(found)

    monkeypatch.setattr(Candidates, "totals", totals)
    train(settings, TinyPolicy())
    found = rows(settings)
    assert found[3]["skipped/tie"] == 24
    assert "loss" in found[2]
    assert not any("loss" in row for row in found[3:])
    assert "round 1 has no pairs" in caplog.text


def test_online_step_without_a_pair_is_skipped(config):
    settings = config("pairs.source=online", "pairs.min_gap=0.99", "run.steps=2")
    before = TinyPolicy().state_dict()
    train(settings, TinyPolicy())
    for name, value in weights(settings).items():
        assert torch.equal(value, before[name])


def test_pairs_of_a_file_need_neither_prompts_nor_rewards(tmp_path):
    file = tmp_path / "file.yaml"
    file.write_text(f"""
policy: {{name_or_path: tiny}}
optimizer: {{lr: 0.03}}
pairs: {{source: {write_pairs(tmp_path / "pairs.parquet")}}}
run: {{out: {tmp_path}/run, steps: 5, trackers: []}}
""")
    settings = load_config(DPOConfig, file)
    assert train(settings, TinyPolicy()) == 0
    assert rows(settings)[-1]["accuracy"] > 0.9
    with pytest.raises(ConfigError, match="rewards: is missing"):
        load_config(DPOConfig, file, ["evaluation.sets={a: {source: x.txt}}"])
    with pytest.raises(ConfigError, match="prompts: is missing"):
        load_config(DPOConfig, file, ["pairs.source=online"])


@pytest.mark.parametrize("name", ["lab_dpo", "janus_pro_7b_dpo"])
def test_configurations_that_ship_can_be_read_and_shared(name):
    settings = load_config(DPOConfig, name)
    assert settings.run.steps % settings.pairs.rounds == 0
    assert settings.pairs.prompts_per_round % 8 == 0
    assert settings.pairs.shard % 8 == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.steps=13"], "run.steps, 13, must be a multiple of pairs.rounds, 3"),
        (["pairs.per_prompt=2"], "pairs: best_worst gives 1 to 1 pairs of 4 candidates, got per_prompt=2"),
        (["pairs.mode=topk_bottomk", "pairs.per_prompt=3"], "pairs: topk_bottomk gives 1 to 2 pairs of 4"),
        (["dpo.loss=ipo", "dpo.label_smoothing=0.1"], "dpo: label_smoothing 0.1 has no meaning for ipo"),
        (["dpo.gamma=0.1"], "dpo: gamma is the margin of simpo, got 0.1 for sigmoid"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_sampled(config, overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(*overrides)


def test_round_whose_pairs_are_gone_cannot_be_gone_on_with(config, monkeypatch):
    settings = config("run.save_every=1")
    with monkeypatch.context() as patched:
        kill_at(patched, Run, "update", 3)
        with pytest.raises(Killed):
            train(settings, TinyPolicy())
    for file in settings.run.out.glob("rounds/*/pairs.parquet"):
        file.unlink()
    with pytest.raises(ValueError, match=r"pairs\.parquet is gone"):
        train(settings, TinyPolicy())


def test_micro_batches_do_not_change_the_update(config, tmp_path):
    found = []
    for size in (3, 8):
        settings = config(f"run.out={tmp_path}/{size}", f"optimizer.micro_batch_size={size}", "run.steps=3")
        train(settings, TinyPolicy())
        found.append(rows(settings))
    for one, other in zip(*found, strict=True):
        for name in ("loss", "margin", "slope", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)


ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_process_that_is_killed_and_started_again_reaches_the_same_weights(file, config, tmp_path):
    overrides = ["run.steps=60", "run.save_every=7", "optimizer.lr=0.003"]
    whole = config(f"run.out={tmp_path}/whole", *overrides)
    train(whole, TinyPolicy())
    settings = config(*overrides)
    command = [sys.executable, "-m", "tests.trainers.redness", str(file), *overrides]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if (settings.run.out / "metrics.jsonl").exists() and len(rows(settings)) >= 25:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 25 <= len(rows(settings)) < 60
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(settings)[name]), name
    assert [row["loss"] for row in rows(whole)] == [row["loss"] for row in rows(settings)]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["iterative", "online", "file"])
def test_two_processes_have_the_curves_of_one(file, config, tmp_path, free_port, source):
    overrides = [
        f"pairs.source={write_pairs(tmp_path / 'pairs.parquet') if source == 'file' else source}",
        "pairs.batch_size=7",  # one more for the one than for the other
        "pairs.condition_dropout=0.3",
        "optimizer.micro_batch_size=3",
    ]
    two = config(f"run.out={tmp_path}/two", *overrides)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), "-m", "tests.trainers.redness", str(file)]
    subprocess.run([*command, f"run.out={tmp_path}/two", *overrides], cwd=ROOT, env=ENVIRONMENT, check=True)
    one = config(f"run.out={tmp_path}/one", *overrides)
    train(one, TinyPolicy())
    for mine, theirs in zip(rows(one), rows(two), strict=True):
        for name, value in mine.items():
            if "seconds" not in name:
                assert theirs[name] == pytest.approx(value, abs=1e-4), (mine["step"], name)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, atol=1e-4, rtol=1e-4)
