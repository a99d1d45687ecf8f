"""What is found of the paper's claims in runs, and what a search saves."""

from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from rewardzoo.clients.compare.findings import Scaled, findings, scaling, versus
from rewardzoo.clients.compare.outcomes import Outcomes, summarize_runs
from rewardzoo.clients.compare.runs import Run
from rewardzoo.clients.compare.search_saving import equal_n, search_point
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.clients.compare.study import MEAN, Finding
from rewardzoo.clients.compare.summaries import Estimate

JUDGE = "lab:exact"
IMAGES = 400  # of each evaluation


def images_alone(pairs: int) -> float:
    """Half of the 95% interval of a difference that rests on the images of so many pairs of runs."""
    return NormalDist().inv_cdf(0.975) * 0.5 * math.sqrt(2 / (IMAGES * pairs))


def run(algorithm: str, reward: str, seed: int, in_domain: float, out_of_domain: float) -> Run:
    metrics = {
        f"eval/in_domain/{JUDGE}": np.array([0.3, in_domain]),
        f"eval/out_of_domain/{JUDGE}": np.array([0.3, out_of_domain]),
    }
    metrics |= {f"eval_std/{split}/{JUDGE}": np.full(2, 0.5) for split in ("in_domain", "out_of_domain")}
    name = f"{algorithm}/{reward}/{seed}"
    return Run(name, algorithm, {reward: 1.0}, (JUDGE,), seed, name, np.array([0.0, 8.0]), metrics)


def outcomes(*runs: Run) -> Outcomes:
    return summarize_runs(runs, name="x", bootstrap=Bootstrap(100))


def test_algorithms_are_compared_by_pairs_of_a_seed() -> None:
    noise = {0: 0.0, 1: 0.2, 2: -0.1}  # of a seed, the same for both algorithms
    gaps = {"a": 0.1, "b": 0.3}
    found = versus(
        outcomes(
            *(run("grpo", r, s, 0.5 + noise[s], 0.5) for r, s in product(gaps, noise)),
            *(run("dpo", r, s, 0.5 + noise[s] + gaps[r], 0.4) for r, s in product(gaps, noise)),
        ),
        IMAGES,
    )
    by_place = {(each.reward, each.split): each for each in found}
    assert by_place["a", "in_domain"].difference.value == pytest.approx(0.1)
    whole = by_place[MEAN, "in_domain"]
    assert whole.difference.value == pytest.approx(0.2)
    # What both share does not widen the interval; what is left is that of the images of six pairs.
    assert whole.difference.high - whole.difference.value == pytest.approx(images_alone(6))
    assert whole.relative == pytest.approx(0.2 / (0.5 + 0.1 / 3))
    assert by_place[MEAN, "out_of_domain"].difference.value == pytest.approx(-0.1)


def test_the_mean_is_of_seeds_that_every_reward_has() -> None:
    runs = [run(a, r, s, 0.5, 0.5) for a, r, s in product(("grpo", "dpo"), "ab", (0, 1))]
    found = versus(outcomes(*runs[:-1]), IMAGES)  # dpo on b lacks seed 1
    assert {each.reward: each.seeds for each in found} == {"a": 2, "b": 1, MEAN: 1}


def test_claims_are_put_so_that_above_zero_agrees() -> None:
    runs = []
    for place, reward in enumerate("abc"):
        for seed in range(3):
            runs.append(run("grpo", reward, seed, 0.5, 0.5 + place / 10 + seed / 100))
            runs.append(run("dpo", reward, seed, 0.6 + seed / 100, 0.3 + place / 10))
    summary = outcomes(*runs)
    found = findings(summary, versus(summary, IMAGES), (), ())
    assert [(f.claim, f.verdict) for f in found] == [
        ("DPO is better than GRPO in domain.", "agrees"),
        ("GRPO is better than DPO out of domain.", "agrees"),
    ]
    assert found[1].estimate.value == pytest.approx(0.21)
    assert found[1].estimate.low < found[1].estimate.value < found[1].estimate.high


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.3, "agrees"),
        (-0.3, -0.1, "disagrees"),
        (-0.1, 0.1, "undecided"),
        (math.nan, math.nan, "undecided"),
    ],
)
def test_an_interval_that_has_zero_or_is_none_decides_nothing(low: float, high: float, verdict: str) -> None:
    assert Finding("x", "y", Estimate(0.2, low, high)).verdict == verdict


def test_an_order_that_chance_makes_too_often_decides_nothing() -> None:
    assert Finding("x", "y", Estimate(1.0, 0.2, 1.0), p=0.083).verdict == "undecided"
    assert Finding("x", "y", Estimate(1.0, 0.2, 1.0), p=0.017).verdict == "agrees"


def test_of_one_seed_a_value_has_the_interval_of_its_images_and_nothing_is_decided() -> None:
    runs = [
        Scaled("candidates", 4, run("grpo", "a", 0, 0.4, 0.5)),
        Scaled("candidates", 16, run("grpo", "a", 0, 0.6, 0.5)),
    ]
    points, found = scaling(runs, JUDGE, 100, 0.95)
    low = next(p for p in points if (p.value, p.split) == (4, "in_domain"))
    assert low.final.value == 0.4
    assert low.final.high - low.final.value == pytest.approx(1.96 * 0.5 / 10, rel=1e-3)
    assert low.gain.value == pytest.approx(0.2)
    inside = next(f for f in found if "in domain" in f.claim)
    assert inside.estimate.value == pytest.approx(0.2)
    assert math.isnan(inside.estimate.low)
    assert (inside.measure, inside.verdict) == ("16 minus 4, one seed", "undecided")


def test_of_several_seeds_an_axis_is_compared_by_pairs() -> None:
    shared = (0.0, 0.1, 0.05)
    runs = [
        Scaled("prompts", value, run("dpo", "a", seed, 0.4 + noise + value / 1000, 0.4))
        for seed, noise in enumerate(shared)
        for value in (16, 116)
    ]
    _, found = scaling(runs, JUDGE, IMAGES, 0.95)
    inside = next(f for f in found if "in domain" in f.claim)
    assert inside.estimate.value == pytest.approx(0.1)
    # Three seeds that agree to the digit are still no surer than their images.
    assert inside.estimate.high - inside.estimate.value == pytest.approx(images_alone(3))
    assert "3 seeds" in inside.measure


def test_seeds_that_disagree_more_than_their_images_widen_the_interval() -> None:
    runs = [
        Scaled("prompts", value, run("dpo", "a", seed, 0.4 + noise * (value > 16), 0.4))
        for seed, noise in enumerate((0.3, 0.0, 0.15))
        for value in (16, 116)
    ]
    _, found = scaling(runs, JUDGE, IMAGES, 0.95)
    inside = next(f for f in found if "in domain" in f.claim)
    t = 4.302653 * 0.15 / 3**0.5
    assert inside.estimate.high - inside.estimate.value == pytest.approx(t, rel=1e-5)


@pytest.mark.parametrize(
    ("target", "n"), [(0.1, 1.0), (0.2, 1.0), (0.3, 1.5), (0.4, 2.0), (0.5, 4.0), (0.9, 4.0)]
)
def test_as_many_images_are_counted_as_are_worth_the_target(target: float, n: float) -> None:
    assert equal_n(np.array([0.2, 0.4, 0.35, 0.5]), target) == pytest.approx(n)


def test_a_search_saves_what_it_does_not_draw_for_the_same_share_right() -> None:
    prompts = 50
    worth = np.tile([0.2, 0.4, 0.5, 0.6], (prompts, 1))
    right = np.repeat([1.0, 0.0], prompts // 2)
    point = search_point("in_domain", 4, right, np.full(prompts, 1.5), worth, Bootstrap(200))
    assert (point.equal_n.value, point.saved.value) == (3.0, 0.5)
    assert point.saved.low < 0.5 < point.saved.high
    assert not point.capped
    everything = search_point("in_domain", 4, np.ones(prompts), np.full(prompts, 2.0), worth, Bootstrap(200))
    assert (everything.equal_n.value, everything.saved.value, everything.capped) == (4.0, 0.5, True)
