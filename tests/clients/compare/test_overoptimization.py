"""The alarm on simulated training curves."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from rewardzoo.clients.compare.overoptimization import Alarm, OveroptimizationAlarm

STEPS = np.arange(1000)
RISES = 5 * STEPS / 1000
SATURATES = 3 * (1 - np.exp(-STEPS / 150))
FLAT = 0.0 * STEPS
PEAKS = np.where(STEPS < 300, 2 * STEPS / 300, 2 - 2 * (STEPS - 300) / 700)
"""Up by two standard deviations of a step's noise, and down again."""


def noise(rng: np.random.Generator, correlation: float) -> np.ndarray:
    shocks = rng.normal(size=len(STEPS)) * math.sqrt(1 - correlation**2)
    values = [rng.normal()]
    for shock in shocks[1:]:
        values.append(correlation * values[-1] + shock)
    return np.array(values)


def alarm_of(
    own: Any, judge: Any, seed: int, correlation: float = 0.0, every: int = 1, **settings: Any
) -> Alarm | None:
    """Train once with unit noise on both curves; the judge comes every so many steps."""
    rng = np.random.default_rng(seed)
    own, judge = own + noise(rng, correlation), judge + noise(rng, correlation)
    alarm = OveroptimizationAlarm(judges=["judge/exact"], **settings)
    for step in STEPS:
        metrics = {"reward": own[step], "loss": 1.0}
        if step % every == 0:
            metrics["judge/exact"] = judge[step]
        if found := alarm.update(int(step), metrics):
            return found
    return None


def rate(runs: int, *arguments: Any, **settings: Any) -> float:
    return sum(alarm_of(*arguments, seed, **settings) is not None for seed in range(runs)) / runs


def test_hacking_is_told_in_time_and_its_peak_is_found() -> None:
    found = [alarm_of(RISES, PEAKS, seed) for seed in range(10)]
    assert all(found)
    steps = [alarm.step for alarm in found if alarm]
    assert min(steps) > 300, "never before the judge has turned"
    assert np.median(steps) < 750
    assert np.median([alarm.peak_step for alarm in found if alarm]) == pytest.approx(300, abs=80)
    assert all(alarm.z < 0 < alarm.own_z and alarm.drop > 0 for alarm in found if alarm)


def test_hacking_is_told_where_the_own_reward_has_nearly_come_to_its_end() -> None:
    assert rate(5, SATURATES, PEAKS) == 1


@pytest.mark.parametrize(("own", "judge"), [(RISES, FLAT), (FLAT, FLAT), (RISES, RISES), (RISES, SATURATES)])
def test_no_alarm_where_no_judge_falls(own: np.ndarray, judge: np.ndarray) -> None:
    assert rate(10, own, judge) <= 0.1


def test_hardly_an_alarm_where_both_fall_together() -> None:
    assert rate(10, PEAKS, PEAKS) <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "judge", "settings"),
    [
        (RISES, FLAT, {}),
        (RISES, SATURATES, {}),
        (RISES, FLAT, {"correlation": 0.8, "block": 20}),
        (RISES, FLAT, {"every": 10, "block": 1}),
    ],
    ids=["flat", "saturated", "correlated", "evaluations"],
)
def test_false_alarms_are_fewer_than_one_run_in_ten(own: Any, judge: Any, settings: dict[str, Any]) -> None:
    assert rate(100, own, judge, **settings) < 0.1


def test_it_is_told_once_and_all_alarms_are_kept() -> None:
    rng = np.random.default_rng(0)
    alarm = OveroptimizationAlarm()
    told = []
    for step in STEPS:
        fall = PEAKS[step] + rng.normal()
        metrics = {"reward": RISES[step] + rng.normal(), "judge/a": fall, "eval/in_domain/b": RISES[step]}
        told.append(alarm.update(int(step), metrics))
    found = [each for each in told if each]
    assert found == alarm.alarms
    assert [each.judge for each in found] == ["judge/a"]
    assert "judge/a has fallen by" in str(found[0])


def test_a_run_that_goes_on_from_a_checkpoint_is_told_the_same() -> None:
    rng = np.random.default_rng(0)
    rows = [{"reward": RISES[s] + rng.normal(), "judge/a": PEAKS[s] + rng.normal()} for s in STEPS]
    whole, first, then = (OveroptimizationAlarm() for _ in range(3))
    for step, row in enumerate(rows):
        whole.update(step, row)
    for step, row in enumerate(rows[:503]):
        first.update(step, row)
    then.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step, row in enumerate(rows[503:], 503):
        then.update(step, row)
    assert whole.alarms
    assert then.state_dict() == whole.state_dict()


def test_what_is_no_finite_number_is_passed_over() -> None:
    alarm = OveroptimizationAlarm(block=1)
    for step, value in enumerate((float("nan"), None, "high", float("inf"))):
        assert alarm.update(step, {"reward": value, "judge/a": 1.0}) is None
        assert alarm.update(step, {"reward": 1.0, "judge/a": value}) is None
    assert alarm.state_dict()["series"]["judge/a"]["judge"] == [1.0] * 3, (
        "there is an own reward before three of them"
    )


def test_a_rare_judge_is_set_against_the_mean_of_the_own_reward_since() -> None:
    alarm = OveroptimizationAlarm(judges=["eval/a"], block=1)
    for step in range(1, 7):
        alarm.update(step, {"reward": float(step)} | ({"eval/a": 0.5} if step % 3 == 0 else {}))
    assert alarm.state_dict()["series"]["eval/a"]["own"] == [2.0, 5.0]


def test_curves_without_noise_do_not_break_it() -> None:
    alarm = OveroptimizationAlarm(block=1)
    for step in range(40):
        alarm.update(step, {"reward": 1.0, "judge/a": 1.0})
    assert alarm.alarms == []
    for step in range(40, 80):
        alarm.update(step, {"reward": float(step), "judge/a": 40.0 - step})
    assert [each.judge for each in alarm.alarms] == ["judge/a"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judges": "a"}, r"\['a'\]"),
        ({"block": 0}, "got 0"),
        ({"min_blocks": 3}, "3"),
        ({"alpha": 0.7}, "0.7"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OveroptimizationAlarm(**settings)
