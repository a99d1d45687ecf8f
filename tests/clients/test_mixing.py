from __future__ import annotations

import json
import math
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rewardzoo.clients import PRESETS, Affine, GroupZ, Mixture, Percentile, RunningZ

NAN = math.nan
FLOATS = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))


def test_a_total_is_the_weighted_sum_of_raw_scores() -> None:
    total = Mixture({"a": 1.0, "b": -0.5}).total({"a": [1, 2], "b": [4, 2]})
    assert total.dtype == np.float32
    assert_array_equal(total, [-1, 1])


def test_presets_scale_as_the_trainers_they_are_named_after() -> None:
    mixture = Mixture({"pickscore": 1, "u": 1}, normalize={"pickscore": "flow_grpo/pickscore"})
    assert_allclose(mixture.total({"pickscore": [26, 13], "u": [1, 1]}), [2, 1.5])
    assert_allclose(PRESETS["flow_grpo/unifiedreward"](np.array([5.0]), [0]), [1])
    assert_allclose(PRESETS["unirl/clipscore"](np.array([30.0]), [0]), [1])
    with pytest.raises(ValueError, match="no normaliser 'pickscore/26': there are identity, flow_grpo"):
        Mixture({"a": 1}, normalize="pickscore/26")


def test_running_z_by_hand() -> None:
    running = RunningZ(eps=0)
    assert_allclose(running(np.array([1.0, 3.0]), []), [-1, 1])
    # Over 1, 3, 5, 7: mean 4, population variance 5.
    assert_allclose(running(np.array([5.0, 7.0]), []), np.array([1, 3]) / math.sqrt(5))
    assert (running.count, running.mean) == (4, 4.0)


def test_running_z_of_one_score_alone_is_zero_and_of_none_teaches_nothing() -> None:
    running = RunningZ()
    assert_array_equal(running(np.array([7.0]), []), [0])
    assert_array_equal(running(np.array([NAN]), []), [NAN])
    assert running.count == 1


@given(st.lists(st.lists(FLOATS, max_size=6), min_size=1, max_size=6))
def test_running_z_knows_the_same_however_scores_are_cut_into_calls(calls: list[list[float]]) -> None:
    cut, whole = RunningZ(), RunningZ()
    for call in calls:
        cut(np.array(call), [])
    seen = np.array([x for call in calls for x in call])
    whole(seen, [])
    assert cut.count == whole.count == len(seen)
    assert_allclose([cut.mean, cut.std], [whole.mean, whole.std], atol=1e-6)
    if len(seen):
        assert_allclose([whole.mean, whole.std], [seen.mean(), seen.std()], atol=1e-6)


def test_group_z_by_hand() -> None:
    scores = np.array([1.0, 10.0, 3.0, 10.0, 5.0])
    found = GroupZ(eps=0)(scores, ["x", "y", "x", "y", "z"])
    # x: mean 2, unbiased std sqrt(2); y: no spread; z: alone.
    assert_allclose(found[[0, 2]], np.array([-1, 1]) / math.sqrt(2))
    assert_array_equal(found[[1, 3, 4]], [0, 0, 0])


@given(st.lists(st.tuples(FLOATS, st.integers(0, 3)), min_size=1, max_size=30))
def test_group_z_has_mean_zero_in_each_group_and_forgets_scale(items: list[tuple[float, int]]) -> None:
    scores, groups = np.array([s for s, _ in items]), [g for _, g in items]
    found = GroupZ()(scores, groups)
    for group in set(groups):
        members = [i for i, g in enumerate(groups) if g == group]
        assert abs(found[members].mean()) < 1e-6
    if all(np.ptp(scores[[i for i, g in enumerate(groups) if g == group]]) > 1 for group in set(groups)):
        assert_allclose(GroupZ()(1000 * scores, groups), found, rtol=1e-3, atol=1e-3)


def test_each_reward_is_normalised_in_its_group_before_they_are_summed() -> None:
    mixture = Mixture({"small": 1, "large": 1}, normalize=GroupZ())
    scores = {"small": [0.1, 0.2, 0.3], "large": [300.0, 200.0, 100.0]}
    assert_allclose(mixture.total(scores), [0, 0, 0], atol=1e-2)
    raw = Mixture({"small": 1, "large": 1}).total(scores)
    assert raw.argmax() == 0, "without it the reward of wider spread decides"


def test_percentile_by_hand() -> None:
    percentile = Percentile([4, 1, 2, 2])
    found = percentile(np.array([0.0, 1.0, 2.0, 3.0, 5.0, NAN]), [])
    assert_array_equal(found, [0, 0.125, 0.5, 0.75, 1, NAN])


@pytest.mark.parametrize("calibration", [[], [[1.0]], [1.0, NAN]])
def test_a_calibration_set_that_is_none_is_refused(calibration: Any) -> None:
    with pytest.raises(ValueError, match="one or more finite scores"):
        Percentile(calibration)


def test_ensembles_by_hand() -> None:
    scores = {"a": [1, 5], "b": [3, 5]}
    weights = {"a": 1.0, "b": 1.0}
    assert_array_equal(Mixture(weights, reduce="mean").total(scores), [2, 5])
    assert_array_equal(Mixture(weights, reduce="min").total(scores), [1, 5])
    assert_array_equal(Mixture(weights, reduce="lower-confidence", confidence=2).total(scores), [0, 5])
    with pytest.raises(ValueError, match="reduce must be one of sum, mean, min, lower-confidence"):
        Mixture(weights, reduce="max")  # type: ignore[arg-type]


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=9))
def test_no_ensemble_is_above_its_mean_and_the_worst_is_the_least(pairs: list[tuple[float, float]]) -> None:
    scores = {"a": [x for x, _ in pairs], "b": [y for _, y in pairs]}
    mean, least, lower = (
        Mixture({"a": 1, "b": 1}, reduce=how).total(scores)  # type: ignore[arg-type]
        for how in ("mean", "min", "lower-confidence")
    )
    assert (least <= mean).all()
    # Of two, the mean less one standard deviation is the worse of them.
    assert_allclose(lower, least, atol=1e-3)


@pytest.mark.parametrize("normalizer", [Affine(2, 1), RunningZ(), GroupZ(), Percentile([0, 1, 2])])
@pytest.mark.parametrize("reduce", ["sum", "mean", "min", "lower-confidence"])
def test_an_item_without_one_of_its_scores_has_no_total_and_does_not_touch_the_others(
    normalizer: Any, reduce: Any
) -> None:
    def total(*scores: float) -> Any:
        mixture = Mixture({"a": 1, "b": 1}, normalize={"a": normalizer}, reduce=reduce)
        mixture.load_state_dict(fresh)
        return mixture.total({"a": scores, "b": [1.0] * len(scores)})

    fresh = json.loads(json.dumps(Mixture({"a": 1, "b": 1}, normalize={"a": normalizer}).state_dict()))
    with_gap, without = total(0.0, NAN, 2.0), total(0.0, 2.0)
    assert_array_equal(with_gap, [without[0], NAN, without[1]])


def test_a_judge_is_scored_and_cannot_enter_the_total() -> None:
    mixture = Mixture({"a": 1}, held_out=["judge"])
    assert mixture.rewards == ("a", "judge")
    assert_array_equal(mixture.total({"a": [1, 2], "judge": [NAN, 1e9]}), [1, 2])
    assert_array_equal(mixture.total({"a": [1, 2]}), [1, 2])


@pytest.mark.parametrize(
    ("counted", "judge"),
    [("a", "a"), ("a:v1", "a:v1"), ("a", "a:v1"), ("a:v1", "a")],
)
def test_a_judge_that_could_be_a_counted_reward_is_refused(counted: str, judge: str) -> None:
    with pytest.raises(ValueError, match="is held out and cannot count too"):
        Mixture({counted: 1}, held_out=[judge])
    Mixture({"a:v1": 1}, held_out=["a:v2"])


@pytest.mark.parametrize("weight", [0, NAN, math.inf])
def test_a_weight_that_means_nothing_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"the weight of a is .*hold it out"):
        Mixture({"a": weight})


def test_arguments_that_do_not_fit_are_refused() -> None:
    mixture = Mixture({"a": 1, "b": 1}, normalize=GroupZ())
    with pytest.raises(ValueError, match="no scores of b; got those of a"):
        mixture.total({"a": [1]})
    with pytest.raises(ValueError, match=r"must all be \(N,\), got \[\(1,\), \(2,\)\]"):
        mixture.total({"a": [1], "b": [1, 2]})
    with pytest.raises(ValueError, match="got 1 scores and 2 groups"):
        mixture.total({"a": [1], "b": [1]}, ["x", "y"])
    with pytest.raises(ValueError, match="normalize names c, which do not count"):
        Mixture({"a": 1}, normalize={"c": RunningZ()})
    with pytest.raises(ValueError, match="cannot serve another: give one each"):
        Mixture({"a": 1, "b": 1}, normalize=RunningZ())
    with pytest.raises(ValueError, match="got a string"):
        Mixture({"a": 1}, held_out="judge")
    with pytest.raises(ValueError, match="names a judge twice"):
        Mixture({"a": 1}, held_out=["judge", "judge"])


def mixture() -> Mixture:
    return Mixture(
        {"a": 1, "b": 2, "c": 3}, normalize={"a": RunningZ(), "b": Percentile([1, 2]), "c": GroupZ()}
    )


def test_a_run_that_goes_on_from_its_state_scores_as_if_it_had_never_stopped() -> None:
    rng = np.random.default_rng(0)
    batches = [{name: rng.normal(size=4) for name in "abc"} for _ in range(3)]
    through, stopped, again = mixture(), mixture(), mixture()
    for batch in batches[:2]:
        through.total(batch)
        stopped.total(batch)
    state = json.loads(json.dumps(stopped.state_dict()))
    again.load_state_dict(state)
    assert_array_equal(again.total(batches[2]), through.total(batches[2]))
    assert not np.array_equal(mixture().total(batches[2]), through.total(batches[2]))


def test_a_state_of_another_mixture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the state is of \['a'\], this mixture is of \['a', 'b', 'c'\]"):
        mixture().load_state_dict({"a": {}})
    with pytest.raises(ValueError, match="GroupZ has no state"):
        mixture().load_state_dict({**mixture().state_dict(), "c": {"count": 1}})


def test_threads_that_share_a_mixture_lose_no_score() -> None:
    shared = Mixture({"a": 1}, normalize=RunningZ())
    threads = [
        threading.Thread(target=lambda: [shared.total({"a": [1.0, 2.0]}) for _ in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared.state_dict()["a"]["count"] == 1600
