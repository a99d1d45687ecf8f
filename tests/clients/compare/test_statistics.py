from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rewardzoo.clients.compare.across_prompts import count_pairs
from rewardzoo.clients.compare.statistics import (
    Bootstrap,
    holm,
    kendall,
    kendall_rows,
    p_value,
    spearman,
    spearman_rows,
)

SETS = 500


def simulated(prompts: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pairs right and pairs in all by prompt, (prompts, SETS) each; the pairs of a prompt depend on it.

    How easy a prompt is comes from Beta(3, 1), so that three of four pairs are right in truth.
    """
    ease = rng.beta(3, 1, (prompts, SETS))
    pairs = rng.integers(1, 9, (prompts, SETS))
    return rng.binomial(pairs, ease).astype(float), pairs.astype(float)


def test_95_percent_intervals_hold_the_truth_in_93_percent_of_500_sets_or_more() -> None:
    right, pairs = simulated(150, np.random.default_rng(1))
    low, high = np.quantile(Bootstrap(1000).ratios(right, pairs), [0.025, 0.975], axis=0)
    coverage = ((low <= 0.75) & (high >= 0.75)).mean()
    assert 0.93 <= coverage <= 0.98


def test_intervals_of_paired_differences_hold_the_truth_as_often() -> None:
    rng = np.random.default_rng(2)
    ease = rng.beta(3, 1, (150, SETS))
    pairs = rng.integers(1, 9, (150, SETS))
    one, other = rng.binomial(pairs, ease), rng.binomial(pairs, ease * 0.9)  # 0.75 and 0.675 in truth
    drawn = Bootstrap(1000).ratios(
        np.concatenate([one, other], axis=1).astype(float), np.tile(pairs.astype(float), 2)
    )
    low, high = np.quantile(drawn[:, :SETS] - drawn[:, SETS:], [0.025, 0.975], axis=0)
    assert ((low <= 0.075) & (high >= 0.075)).mean() >= 0.93


def test_drawing_pairs_instead_of_prompts_would_be_too_sure() -> None:
    right, pairs = simulated(150, np.random.default_rng(3))
    held = []
    for k in range(60):
        each = np.concatenate([np.arange(p) < r for r, p in zip(right[:, k], pairs[:, k], strict=True)])
        drawn = Bootstrap(300).ratios(each.astype(float)[:, None], np.ones((len(each), 1)))[:, 0]
        low, high = np.quantile(drawn, [0.025, 0.975])
        held.append(low <= 0.75 <= high)
    assert np.mean(held) < 0.9


def test_equal_rewards_are_told_apart_no_more_often_than_the_level_says() -> None:
    rng = np.random.default_rng(4)
    ease = rng.beta(3, 1, (150, SETS))
    pairs = rng.integers(1, 9, (150, SETS))
    both = [rng.binomial(pairs, ease).astype(float) for _ in range(2)]
    drawn = Bootstrap(1000).ratios(np.concatenate(both, axis=1), np.tile(pairs.astype(float), 2))
    p = [p_value(drawn[:, k] - drawn[:, SETS + k]) for k in range(SETS)]
    assert np.mean(np.array(p) < 0.05) < 0.075


def test_a_draw_has_as_many_prompts_as_there_are_and_repeats_by_seed() -> None:
    blocks = list(Bootstrap(100, seed=7).draws(40))
    assert sum(map(len, blocks)) == 100
    assert all((block.sum(1) == 40).all() for block in blocks)
    again = list(Bootstrap(100, seed=7).draws(40))
    assert all((a == b).all() for a, b in zip(blocks, again, strict=True))
    assert (next(Bootstrap(100, seed=8).draws(40)) != blocks[0]).any()


def test_many_prompts_are_drawn_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((50, 2))
    whole = Bootstrap(200).ratios(values, np.ones_like(values))
    monkeypatch.setattr("rewardzoo.clients.compare.statistics._BLOCK", 50 * 7)
    np.testing.assert_allclose(Bootstrap(200).ratios(values, np.ones_like(values)), whole, rtol=1e-12)


def test_the_interval_of_a_mean_is_that_of_the_normal_theory() -> None:
    values = np.random.default_rng(5).normal(2, 1, 400)
    estimate = Bootstrap(4000).mean(np.append(values, np.nan))
    half = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.01)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.01)


def test_sums_between_prompts_weigh_pairs_by_both_and_never_compare_an_image_with_its_copy() -> None:
    rng = np.random.default_rng(6)
    top = np.triu(rng.random((5, 5)))
    bottom = np.triu(np.ones((5, 5)))
    bootstrap = Bootstrap(100, seed=3)
    weights = np.concatenate(list(bootstrap.draws(5)))
    expected = []
    for w in weights:
        sums = [0.0, 0.0]
        for p in range(5):
            for q in range(p, 5):
                share = w[p] if p == q else w[p] * w[q]
                sums[0] += share * top[p, q]
                sums[1] += share * bottom[p, q]
        expected.append(sums[0] / sums[1])
    assert bootstrap.between_prompts(top, bottom) == pytest.approx(expected)


def test_intervals_of_pairs_between_prompts_hold_the_truth_too() -> None:
    # Scores with an effect of the prompt, ratings that are scores with noise: of two gaps with correlation
    # r, 1/2 + asin(r) / pi have one sign.
    prompts, images, sets, rng = 60, 3, 300, np.random.default_rng(8)
    of_prompt = np.repeat(np.arange(prompts), images)
    between, within = (0.5 + np.arcsin(np.sqrt(v / (v + 1))) / np.pi for v in (2.0, 1.0))
    of_one = prompts * images * (images - 1) / 2
    total = prompts * images * (prompts * images - 1) / 2
    truth = (between * (total - of_one) + within * of_one) / total
    held = []
    for _ in range(sets):
        scores = rng.normal(size=prompts)[of_prompt] + rng.normal(size=len(of_prompt))
        ratings = scores + rng.normal(size=len(of_prompt))
        drawn = Bootstrap(300).between_prompts(*count_pairs(scores, ratings, of_prompt, 0.0))
        low, high = np.quantile(drawn, [0.025, 0.975])
        held.append(low <= truth <= high)
    assert np.mean(held) >= 0.92


def test_any_statistic_can_be_drawn() -> None:
    a, b = np.arange(12.0), np.array([1, 0, 2, 3, 5, 4, 6, 8, 7, 9, 11, 10.0])
    estimate = Bootstrap(300).statistic(lambda rows: spearman(a[rows], b[rows]), 12)
    assert estimate.value == pytest.approx(stats.spearmanr(a, b).statistic)
    assert estimate.low < estimate.value <= estimate.high <= 1


def test_p_is_two_sided_and_never_zero() -> None:
    assert p_value(np.full(999, 0.3)) == pytest.approx(2 / 1000)
    assert p_value(np.zeros(999)) == p_value(np.full(999, 1e-16)) == 1
    assert p_value(np.concatenate([np.full(975, 1.0), np.full(24, -1.0)])) == pytest.approx(0.05)
    assert np.isnan(p_value(np.full(10, np.nan)))


def test_holm_corrects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    corrected = holm([0.02, float("nan")])
    assert corrected[0] == pytest.approx(0.02)
    assert np.isnan(corrected[1])
    assert holm([]) == []


def test_tau_of_rows_known_by_hand() -> None:
    # Of six pairs five agree and one does not.
    assert kendall([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert spearman([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_rows_are_correlated_as_scipy_does_one_by_one_ties_included() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.integers(0, 5, (40, 6)).astype(float), rng.integers(0, 5, (40, 6)).astype(float)
    a[0] = 3  # constant: no correlation
    taus = [stats.kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)]
    rhos = [stats.spearmanr(x, y).statistic if np.ptp(x) else np.nan for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(kendall_rows(a, b), taus, atol=1e-12)
    np.testing.assert_allclose(spearman_rows(a, b), rhos, atol=1e-12)


@pytest.mark.parametrize(("resamples", "confidence"), [(10, 0.95), (1000, 1.0), (1000, 95.0)])
def test_a_bootstrap_that_means_nothing_is_refused(resamples: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=f"{resamples} and {confidence}"):
        Bootstrap(resamples, confidence)
