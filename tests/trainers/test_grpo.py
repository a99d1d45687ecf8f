from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rewardzoo.clients import Scorer
from rewardzoo.clients.transport import Part, Reply, Transport
from rewardzoo.errors import UnavailableError
from rewardzoo.trainers.grpo import GRPOConfig, train
from rewardzoo.trainers.rewards import Rewards, RewardsLostError
from rewardzoo.trainers.tracking import read_metrics

from .tiny_policy import TinyPolicy

SERVED = 'rewards.weights={"served": 1}'
Configured = Callable[..., GRPOConfig]


class Redness(Transport):
    """How red a picture is, 0 to 1, from a server that does what `before` says each time it is asked."""

    def __init__(self, before: Callable[[int], None]) -> None:
        self.before, self.asked = before, 0

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        self.asked += 1
        self.before(self.asked)
        red = [float(((image[..., 0] > 200) & (image[..., 1] < 100)).mean()) for image in part.payloads]
        return Reply(red)


@pytest.fixture
def served(monkeypatch) -> Callable[..., None]:
    """Have `served` scored by `Redness`; each image batch of the tiny run is one part."""

    def serve(before: Callable[[int], None] = lambda asked: None) -> None:
        def connect(self: Rewards, names: Sequence[str]) -> Scorer:
            return Scorer(Redness(before), timeout=5, max_in_flight=1)

        monkeypatch.setattr(Rewards, "_connect", connect)

    return serve


def lines(config: GRPOConfig) -> list[dict[str, Any]]:
    """What was written down, but for what a clock said."""
    timed = ("seconds", "wait_share", "tokens_per_second")
    return [
        {k: v for k, v in line.items() if not k.startswith(timed)} for line in read_metrics(config.run.out)
    ]


def weights(policy: TinyPolicy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def checkpoints(config: GRPOConfig) -> list[str]:
    return sorted(path.name for path in (config.run.out / "checkpoints").iterdir())


def test_a_policy_learns_what_it_is_rewarded_for(configured: Configured, served) -> None:
    served()
    config = configured(SERVED, "run.steps=25", "optimizer.lr=0.05", "grpo.group_size=8", "grpo.beta=0")
    assert train(config, TinyPolicy()) == 0
    rewards = [line["reward"] for line in lines(config)]
    assert np.mean(rewards[:3]) < 0.25
    assert np.mean(rewards[-3:]) > 0.6


class Hacked(Transport):
    """Likes what is done at each call better, by both rewards until the twentieth, then by `served` alone."""

    def __init__(self) -> None:
        self.rng, self.asked = np.random.default_rng(0), {"served": 0, "judge": 0}

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        self.asked[model] += 1
        step = self.asked[model]
        trend = step if model == "served" or step < 20 else 40 - step
        return Reply((trend + self.rng.standard_normal(len(part))).tolist())


def test_a_run_says_when_its_reward_rises_and_a_held_out_judge_falls(
    configured: Configured, monkeypatch, capsys
) -> None:
    def connect(self: Rewards, names: Sequence[str]) -> Scorer:
        return Scorer(Hacked(), timeout=5, max_in_flight=1)

    monkeypatch.setattr(Rewards, "_connect", connect)
    train(configured(SERVED, "rewards.held_out=[judge]", "run.steps=90", "run.save_every=1000"), TinyPolicy())
    said = capsys.readouterr().err
    assert said.count("over-optimised? step") == 1
    assert "judge/judge has fallen" in " ".join(said.split())


def test_a_step_says_all_that_a_reader_of_the_curves_asks(configured: Configured) -> None:
    config = configured("rewards.held_out=[lab:exact]", "run.steps=1")
    train(config, TinyPolicy())
    (line,) = read_metrics(config.run.out)
    assert {
        "reward",
        "reward/lab:exact-share",
        "judge/lab:exact",
        "loss",
        "kl",
        "entropy",
        "clip_low",
        "clip_high",
        "logp_gap",
        "zero_variance",
        "failed",
        "grad_norm",
        "lr",
        "tokens_per_second",
        "seconds/wait",
        "wait_share",
    } <= set(line)
    assert line["ratio"] == pytest.approx(1)
    assert line["kl"] == pytest.approx(0, abs=1e-7)
    provenance = json.loads((config.run.out / "provenance.json").read_text())
    assert provenance["lab:exact"]["recipe"] == "exact judge"


def test_without_a_kl_weight_there_is_no_reference(configured: Configured, monkeypatch) -> None:
    monkeypatch.setattr(TinyPolicy, "reference", lambda self: pytest.fail("asked for a reference"))
    config = configured("grpo.beta=0", "run.steps=1")
    train(config, TinyPolicy())
    assert "kl" not in lines(config)[0]


def test_the_micro_batch_changes_memory_and_not_the_update(configured: Configured) -> None:
    found = []
    for size in (1, 16):
        config = configured(f"optimizer.micro_batch_size={size}", f"run.out=of-{size}", "run.steps=2")
        policy = TinyPolicy()
        train(config, policy)
        found.append(weights(policy))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)


def test_inner_epochs_move_the_policy_away_from_the_one_that_sampled(configured: Configured) -> None:
    config = configured("grpo.inner_epochs=3", "run.steps=1", "optimizer.lr=0.1", "optimizer.warmup_steps=0")
    train(config, TinyPolicy())
    first = lines(config)[0]
    assert first["ratio"] != pytest.approx(1, abs=1e-5)
    assert first["clip_low"] + first["clip_high"] > 0


def test_a_run_that_broke_off_goes_on_to_the_same_weights_and_curves(configured: Configured, served) -> None:
    mixed = (SERVED, 'rewards.normalize={"served": running_z}', "evaluation.every=2")
    sets = 'evaluation.sets={in_domain: {source: "lab:in_domain", count: 4}}'
    served()
    whole = configured(*mixed, sets, "run.out=whole")
    policy = TinyPolicy()
    train(whole, policy)

    def break_off(asked: int) -> None:
        if asked == 7:
            raise MemoryError("as if the process had been killed")

    served(break_off)
    broken = configured(*mixed, sets, "run.out=broken")
    with pytest.raises(MemoryError):
        train(broken, TinyPolicy())
    reached = len(read_metrics(broken.run.out))
    assert reached < 7
    served()
    resumed = TinyPolicy()
    train(broken, resumed)
    assert torch.equal(weights(resumed), weights(policy))
    assert lines(broken) == lines(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_ends_and_the_same_command_goes_on(configured: Configured, served, number) -> None:
    served()
    whole = configured(SERVED, "run.out=whole")
    policy = TinyPolicy()
    train(whole, policy)

    served(lambda asked: os.kill(os.getpid(), number) if asked == 4 else None)
    stopped = configured(SERVED, "run.out=stopped", "run.save_every=100")
    before = signal.getsignal(number)
    assert train(stopped, TinyPolicy()) == 128 + number
    assert signal.getsignal(number) is before
    assert len(checkpoints(stopped)) == 1
    served()
    resumed = TinyPolicy()
    assert train(stopped, resumed) == 0
    assert torch.equal(weights(resumed), weights(policy))


def test_rewards_that_are_gone_leave_a_checkpoint_of_the_last_step_done(
    configured: Configured, served
) -> None:
    served()
    whole = configured(SERVED, "run.out=whole")
    policy = TinyPolicy()
    train(whole, policy)

    def gone(asked: int) -> None:
        if asked >= 4:
            raise UnavailableError("connection refused")

    served(gone)
    config = configured(SERVED, "run.out=gone", "run.save_every=100")
    with pytest.raises(RewardsLostError, match="connection refused") as found:
        train(config, TinyPolicy())
    assert found.value.exit_code == 75
    assert checkpoints(config) == ["step-000003"]
    served()
    resumed = TinyPolicy()
    train(config, resumed)
    assert torch.equal(weights(resumed), weights(policy))


def test_items_that_fail_leave_their_groups_baseline_and_are_never_0(
    configured: Configured, monkeypatch
) -> None:
    class Failing(Redness):
        def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
            scores = [10 + score for score in super().infer(model, part, deadline=deadline).scores]
            failed = range(0, len(scores), 4)
            return Reply(
                [float("nan") if i in failed else s for i, s in enumerate(scores)],
                errors=dict.fromkeys(failed, "cannot be read"),
            )

    def connect(self: Rewards, names: Sequence[str]) -> Scorer:
        return Scorer(Failing(lambda asked: None), timeout=5, max_in_flight=1)

    monkeypatch.setattr(Rewards, "_connect", connect)
    config = configured(SERVED, "run.steps=2")
    train(config, TinyPolicy())
    for line in lines(config):
        assert line["failed"] == pytest.approx(1 / 4)
        assert line["reward"] > 10
        assert line["reward_std"] < 1


def test_evaluations_draw_the_same_numbers_each_time_before_and_after(configured: Configured) -> None:
    config = configured(
        "optimizer.lr=1e-12",
        "evaluation.every=4",
        'evaluation.sets={out_of_domain: {source: "lab:out_of_domain", count: 5}}',
        "evaluation.images_per_prompt=2",
    )
    train(config, TinyPolicy())
    judged = {
        line["step"]: line["eval/out_of_domain/lab:exact-share"]
        for line in lines(config)
        if "eval/out_of_domain/lab:exact-share" in line
    }
    assert list(judged) == [0, 4, 6]
    assert len(set(judged.values())) == 1
    mean, spread = (
        lines(config)[0][f"{what}/out_of_domain/lab:exact-share"] for what in ("eval", "eval_std")
    )
    assert 0 < spread <= (mean * (1 - mean)) ** 0.5  # of shares between 0 and 1
    with Image.open(config.run.out / "grids" / "out_of_domain-000004.png") as grid:
        assert grid.width > 4 * 128


def test_the_newest_checkpoints_are_kept_and_the_policy_is_written_at_the_end(configured: Configured) -> None:
    config = configured("run.save_every=1", "run.keep=3")
    policy = TinyPolicy()
    train(config, policy)
    assert checkpoints(config) == ["step-000004", "step-000005", "step-000006"]
    written = torch.load(config.run.out / "policy" / "weights.pt", weights_only=True)
    assert all(torch.equal(written[name], value) for name, value in policy.state_dict().items())


def test_a_folder_with_a_run_is_not_begun_anew(configured: Configured) -> None:
    config = configured("run.steps=1")
    train(config, TinyPolicy())
    with pytest.raises(ValueError, match=r"run\.out: .* holds a run already: say run\.resume=auto"):
        train(configured("run.resume=never"), TinyPolicy())


def test_a_run_that_is_done_does_nothing_more(configured: Configured) -> None:
    config = configured("run.steps=2")
    train(config, TinyPolicy())
    before = (config.run.out / "metrics.jsonl").read_text()
    policy = TinyPolicy()
    assert train(config, policy) == 0
    assert (config.run.out / "metrics.jsonl").read_text() == before


def test_tensorboard_gets_the_metrics_and_the_grids(configured: Configured) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configured("run.trackers=[tensorboard]", "run.steps=2")
    train(config, TinyPolicy())
    events = EventAccumulator(str(config.run.out / "rewardzoo"))
    events.Reload()
    assert [point.step for point in events.Scalars("reward")] == [1, 2]
    assert "samples/train" in str(events.Tags()["images"])


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
