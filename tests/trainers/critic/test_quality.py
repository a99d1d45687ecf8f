import numpy as np
import pytest
from scipy.special import logit

from rewardzoo.trainers.critic.quality import (
    at_temperature,
    auc,
    by_category,
    calibration_error,
    fit_temperature,
    measure,
    reliability,
)


def test_accuracy_base_rate_and_auc_of_a_few_answers() -> None:
    p = np.array([0.9, 0.6, 0.4, 0.1])
    labels = np.array([True, False, True, False])
    found = measure(p, labels)
    assert (found.n, found.accuracy, found.base_rate, found.auc) == (4, 0.5, 0.5, 0.75)


def test_ties_count_half_in_the_auc() -> None:
    assert auc(np.array([0.5, 0.5, 0.9]), np.array([True, False, True])) == 0.75


def test_where_all_labels_are_one_there_is_no_auc_and_no_temperature() -> None:
    p, labels = np.array([0.3, 0.8]), np.array([True, True])
    assert np.isnan(measure(p, labels).auc)
    assert fit_temperature(np.array([-1.0, 2.0]), labels) == 1.0


def test_calibration_error_is_the_mean_distance_of_said_and_true() -> None:
    p = np.array([0.8] * 10 + [0.2] * 10)
    labels = np.array([True] * 6 + [False] * 4 + [True] * 2 + [False] * 8)
    assert calibration_error(p, labels) == pytest.approx((0.2 * 10 + 0.0 * 10) / 20)
    said, true, count = reliability(p, labels)
    assert (said.tolist(), true.tolist(), count.tolist()) == (
        pytest.approx([0.2, 0.8]),
        pytest.approx([0.2, 0.6]),
        [10, 10],
    )


def test_the_temperature_that_made_answers_too_sure_is_found_and_undone() -> None:
    rng = np.random.default_rng(0)
    honest = rng.uniform(0.02, 0.98, 20_000)
    labels = rng.uniform(size=20_000) < honest
    too_sure = 3 * logit(honest)
    found = fit_temperature(too_sure, labels)
    assert found == pytest.approx(3, rel=0.05)
    assert calibration_error(at_temperature(too_sure, 1), labels) > 0.1
    assert calibration_error(at_temperature(too_sure, found), labels) < 0.02


def test_categories_are_measured_by_themselves() -> None:
    p, labels = np.array([0.9, 0.2, 0.7]), np.array([True, True, True])
    found = by_category(p, labels, ["shape", "color", "shape"])
    assert {name: quality.accuracy for name, quality in found.items()} == {"color": 0.0, "shape": 1.0}


def test_a_label_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="one label a probability"):
        measure(np.array([0.5]), np.array([], dtype=bool))
