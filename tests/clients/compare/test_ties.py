from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from rewardzoo.clients.compare.across_prompts import best_threshold, count_pairs
from rewardzoo.clients.compare.ties import ACCURACY, PROBABILITIES, RULES, WITHOUT_TIES, fit_threshold


def of_pairs(scores: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gaps and labels of all pairs; rank 1 is the best."""
    i, j = np.array(list(combinations(range(len(scores)), 2))).T
    return scores[i] - scores[j], np.sign(ranks[j] - ranks[i]).astype(np.int8)


def value(benchmark: str, gaps: np.ndarray, labels: np.ndarray, metric: str = ACCURACY) -> float:
    judged = RULES[benchmark].judge(gaps, labels, 0.0)[metric]
    return float(judged.credit[judged.counted].mean())


@pytest.mark.parametrize("seed", range(5))
def test_hpdv2_counts_inversions_as_upstream_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, ranks = rng.permutation(9).astype(float), rng.integers(1, 7, 9)
    predicted = np.argsort(np.argsort(-scores))
    inversions = sum(
        (predicted[i] - predicted[j]) * (ranks[i] - ranks[j]) < 0 for i, j in combinations(range(9), 2)
    )
    assert value("hpdv2", *of_pairs(scores, ranks)) == pytest.approx(1 - inversions / 36)


def test_hpdv2_gives_half_where_only_the_reward_ties() -> None:
    assert value("hpdv2", np.array([0.0, 0.0]), np.array([1, 0], np.int8)) == 0.75


@pytest.mark.parametrize("seed", range(5))
def test_imagereward_leaves_out_ties_of_people_and_counts_those_of_the_reward_as_wrong(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, ranks = rng.integers(0, 5, 9).astype(float), rng.integers(1, 5, 9)
    right = total = 0
    for i, j in combinations(range(9), 2):
        if ranks[i] != ranks[j]:
            total += 1
            right += bool(scores[i] < scores[j] if ranks[i] > ranks[j] else scores[i] > scores[j])
    assert value("imagereward", *of_pairs(scores, ranks)) == pytest.approx(right / total)


def pickapic_accuracy(gaps: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    """The accuracy of PickScore's evaluation, on probabilities, pair by pair."""
    credits = []
    for gap, label in zip(gaps, labels, strict=True):
        first = 1 / (1 + np.exp(-gap))
        said = {1: "0", 0: "tie", -1: "1"}[int(label)]
        seen = "tie" if abs(1 - 2 * first) <= threshold else "0" if first > 0.5 else "1"
        credits.append(1.0 if said == seen else 0.5 if "tie" in (said, seen) else 0.0)
    return float(np.mean(credits))


@pytest.mark.parametrize("seed", range(5))
def test_pickapic_fits_pickscores_threshold_on_upstreams_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gaps, labels = rng.normal(0, 1.5, 300), rng.integers(-1, 2, 300).astype(np.int8)
    gaps += labels
    tried = [pickapic_accuracy(gaps, labels, t) for t in PROBABILITIES]
    threshold = fit_threshold("pickscore:v1", gaps, labels)
    assert np.tanh(threshold / 2) == pytest.approx(PROBABILITIES[int(np.argmax(tried))])
    judged = RULES["pickapic"].judge(gaps, labels, threshold)[ACCURACY]
    assert judged.credit.mean() == pytest.approx(max(tried))


def test_pickapic_fits_other_rewards_on_their_own_gaps_whatever_their_scale() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 2, 300).astype(np.int8)
    gaps = np.where(labels == 0, rng.normal(0, 0.1, 300), labels + rng.normal(0, 0.3, 300))
    threshold = fit_threshold("hpsv2:v2.1", gaps, labels)
    assert fit_threshold("hpsv2:v2.1", gaps * 1e-3, labels) == pytest.approx(threshold * 1e-3)
    every = [RULES["pickapic"].judge(gaps, labels, t)[ACCURACY].credit.mean() for t in np.abs(gaps)]
    assert RULES["pickapic"].judge(gaps, labels, threshold)[ACCURACY].credit.mean() == max(every)


def test_mj_bench_counts_ties_of_the_reward_as_wrong_or_not_at_all() -> None:
    gaps, labels = np.array([1.0, -1.0, 0.0, 2.0]), np.array([1, 1, 1, 1], np.int8)
    assert value("mj-bench", gaps, labels) == 0.5
    assert value("mj-bench", gaps, labels, WITHOUT_TIES) == pytest.approx(2 / 3)


def test_plain_pairs_give_half_for_a_tie_of_the_reward() -> None:
    assert value("plain", np.array([1.0, 0.0, -1.0]), np.array([1, -1, 0], np.int8)) == 0.75


def tau_optimisation(scores: np.ndarray, ratings: np.ndarray) -> tuple[float, float]:
    """The best threshold and accuracy of Deutsch et al., every gap tried, pair by pair."""
    pairs = list(combinations(range(len(scores)), 2))

    def accuracy(threshold: float) -> float:
        right = 0
        for i, j in pairs:
            tied = abs(scores[i] - scores[j]) <= threshold
            said = ratings[i] - ratings[j]
            right += said == 0 if tied else (scores[i] - scores[j]) * said > 0
        return right / len(pairs)

    tried = sorted({0.0, *(abs(scores[i] - scores[j]) for i, j in pairs)})
    accuracies = [accuracy(threshold) for threshold in tried]
    return tried[int(np.argmax(accuracies))], max(accuracies)


@pytest.mark.parametrize("seed", range(4))
def test_genai_bench_is_tau_optimisation_over_images_of_all_prompts(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewardzoo.clients.compare.across_prompts._ROWS", 7)  # several blocks
    rng = np.random.default_rng(seed)
    ratings = rng.integers(3, 16, 36) / 3
    scores = ratings + rng.normal(0, 1, 36)
    scores[5] = scores[6]
    threshold, accuracy = tau_optimisation(scores, ratings)
    assert best_threshold(scores, ratings) == pytest.approx(threshold)
    right, total = count_pairs(scores, ratings, np.repeat(np.arange(6), 6), threshold)
    assert right.sum() / total.sum() == pytest.approx(accuracy)
    assert total.sum() == 36 * 35 / 2
    assert np.diag(total).tolist() == [15] * 6
    assert (np.tril(total, -1) == 0).all()
