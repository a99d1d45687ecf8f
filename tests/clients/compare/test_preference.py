from __future__ import annotations

import numpy as np
import pytest

from rewardzoo.clients.compare.groups import FIRST, SECOND, TIE, Group
from rewardzoo.clients.compare.preference import preference
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.clients.compare.summaries import Accuracy, Preference

from .conftest import MakeStore, keep

FEW = Bootstrap(200)


def found(summary: Preference, reward: str, category: str = "all", metric: str = "accuracy") -> Accuracy:
    (one,) = [a for a in summary.accuracies if (a.reward, a.category, a.metric) == (reward, category, metric)]
    return one


def test_accuracy_and_differences_are_exact_where_they_are_known(make_store: MakeStore) -> None:
    # 100 prompts with one pair each, the first image better: "good" is right in 90, "poor" in 60 of these.
    groups = [Group(f"{i}", "p", (f"{i}a", f"{i}b"), ((0, 1, FIRST),)) for i in range(100)]
    store = make_store(groups)
    scores = {name: np.zeros(200) for name in ("good", "poor")}
    for name, right in (("good", 90), ("poor", 60)):
        scores[name][::2] = np.where(np.arange(100) < right, 1, -1)
    keep(store, **scores)
    summary = preference(store, ["good", "poor"], Bootstrap(2000), {"by": "test"})
    assert found(summary, "good").estimate.value == 0.9
    assert found(summary, "poor").estimate.value == 0.6
    assert (found(summary, "good").pairs, found(summary, "good").prompts) == (100, 100)
    (contrast,) = summary.contrasts
    assert contrast.difference.value == pytest.approx(0.3)
    # Of a share of 0.3 the deviation is 0.046.
    assert contrast.difference.low == pytest.approx(0.21, abs=0.02)
    assert contrast.difference.high == pytest.approx(0.39, abs=0.02)
    assert contrast.p < 0.01
    assert [reward.name for reward in summary.rewards] == ["good", "poor"]


def test_a_reward_is_not_better_than_itself(make_store: MakeStore) -> None:
    rng = np.random.default_rng(0)
    pairs = tuple((i, i + 1, FIRST) for i in range(8))
    store = make_store(
        [Group(f"{i}", "p", tuple(f"{i}-{k}" for k in range(9)), pairs) for i in range(20)], "hpdv2"
    )
    scores = rng.normal(size=180)
    keep(store, one=scores, same=scores)
    (contrast,) = preference(store, ["one", "same"], FEW, {}).contrasts
    assert contrast.difference.value == 0
    assert contrast.p == contrast.p_holm == 1


def test_categories_have_their_own_accuracy(make_store: MakeStore) -> None:
    groups = [
        Group("0", "p", ("a", "b"), ((0, 1, FIRST),), ("color", "easy")),
        Group("1", "q", ("c", "d"), ((0, 1, SECOND),), ("color",)),
    ]
    store = make_store(groups)
    keep(store, r=[2, 1, 2, 1])
    summary = preference(store, ["r"], FEW, {})
    values = {a.category: (a.estimate.value, a.pairs) for a in summary.accuracies}
    assert values == {"all": (0.5, 2), "color": (0.5, 2), "easy": (1.0, 1)}
    assert next(iter(values)) == "all"


def test_a_benchmark_counts_by_its_own_rule(make_store: MakeStore) -> None:
    # One prompt with three pairs, two of them right, and one with one pair, wrong.
    groups = [
        Group("0", "p", ("a", "b", "c"), ((0, 1, FIRST), (0, 2, FIRST), (1, 2, SECOND))),
        Group("1", "q", ("d", "e"), ((0, 1, FIRST),)),
    ]
    for benchmark, expected in (("imagereward", 2 / 4), ("hpdv2", (2 / 3 + 0) / 2)):
        store = make_store(groups, benchmark, name=benchmark)
        keep(store, r=[3, 2, 1, 1, 2])
        summary = preference(store, ["r"], FEW, {})
        assert found(summary, "r").estimate.value == pytest.approx(expected)
        assert summary.rule


def test_mj_bench_has_accuracy_without_ties_too(make_store: MakeStore) -> None:
    groups = [Group(f"{i}", "p", (f"{i}a", f"{i}b"), ((0, 1, FIRST),)) for i in range(4)]
    store = make_store(groups, "mj-bench")
    keep(store, r=[1, 0, 1, 0, 0, 1, 5, 5])
    summary = preference(store, ["r"], FEW, {})
    assert found(summary, "r").estimate.value == 0.5
    without = found(summary, "r", metric="accuracy_without_ties")
    assert (without.estimate.value, without.pairs) == (pytest.approx(2 / 3), 3)


def test_pickapic_fits_its_threshold_on_validation_and_counts_test(make_store: MakeStore) -> None:
    def group(i: int, label: int, split: str) -> Group:
        return Group(f"{split}{i}", "p", (f"{split}{i}a", f"{split}{i}b"), ((0, 1, label),), split=split)

    groups = [group(0, TIE, "validation"), group(1, FIRST, "validation"), group(0, TIE, "test")]
    store = make_store([*groups, group(1, SECOND, "test")], "pickapic")
    keep(store, r=[1.1, 1, 5, 1, 1, 1.05, 3, 1])
    one = found(preference(store, ["r"], FEW, {}), "r")
    assert one.threshold == pytest.approx(0.1)
    assert (one.estimate.value, one.pairs) == (0.5, 2)


def test_genai_bench_compares_images_of_all_prompts_and_each_skill_alone(make_store: MakeStore) -> None:
    groups = [
        Group("0", "p", ("a", "b"), categories=("counting",), ratings=(5.0, 1.0)),
        Group("1", "q", ("c", "d"), ratings=(4.0, 2.0)),
    ]
    store = make_store(groups, "genai-bench")
    keep(store, r=[0.9, 0.1, 0.95, 0.2], failing=[0.9, np.nan, 0.8, 0.2])
    # Of the six pairs, only 5 against 4 is in the wrong order.
    alone = preference(store, ["r"], FEW, {})
    assert found(alone, "r").estimate.value == pytest.approx(5 / 6)
    assert (found(alone, "r", "counting").estimate.value, found(alone, "r", "counting").pairs) == (1.0, 1)
    # An image that one reward failed at counts for none.
    both = preference(store, ["r", "failing"], FEW, {})
    assert found(both, "r").pairs == found(both, "failing").pairs == 3
    assert found(both, "r").estimate.value == pytest.approx(2 / 3)


def test_a_pair_that_one_reward_failed_at_counts_for_none(make_store: MakeStore) -> None:
    groups = [Group(f"{i}", "p", (f"{i}a", f"{i}b"), ((0, 1, FIRST),)) for i in range(2)]
    store = make_store(groups)
    keep(store, sound=[1, 0, 0, 1], failing=[1, 0, np.nan, 1])
    summary = preference(store, ["sound", "failing"], FEW, {})
    assert found(summary, "sound").estimate.value == 1
    assert found(summary, "sound").pairs == 1
    assert [reward.failed for reward in summary.rewards] == [0, 1]


def test_data_without_judged_pairs_is_refused_with_the_way_out(make_store: MakeStore) -> None:
    store = make_store([Group("0", "p", ("a", "b"))], name="pool")
    keep(store, r=[0, 1])
    with pytest.raises(ValueError, match="no judged pairs: compare with best-of-n or agreement"):
        preference(store, ["r"], FEW, {})
    tied = make_store([Group("0", "p", ("a", "b"), ((0, 1, TIE),))], name="tied")
    keep(tied, r=[0, 1])
    with pytest.raises(ValueError, match="no pair counts"):
        preference(tied, ["r"], FEW, {})
