"""How good a critic is: how often right, how well it ranks, and whether it is as sure as it is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import mannwhitneyu

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]

BINS = 15
"""Of confidence, as Guo et al. (arXiv 1706.04599) use."""


@dataclass(frozen=True)
class Quality:
    """Of N answers: `accuracy` at P(yes) = 0.5, `base_rate` (the share of yes), `auc` (NaN where all labels
    are one), and `ece`, the expected calibration error over bins of equal width."""

    n: int
    base_rate: float
    accuracy: float
    auc: float
    ece: float

    def row(self) -> dict[str, Any]:
        """Return it as a table's row."""
        return asdict(self)


def measure(p_yes: Floats, labels: Labels) -> Quality:
    """Measure probabilities (N,) against labels (N,).

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    if len(p_yes) != len(labels) or not len(labels):
        raise ValueError(f"one label a probability, and at least one: got {len(p_yes)} and {len(labels)}")
    right = (p_yes >= 0.5) == labels
    return Quality(
        n=len(labels),
        base_rate=float(labels.mean()),
        accuracy=float(right.mean()),
        auc=auc(p_yes, labels),
        ece=calibration_error(p_yes, labels),
    )


def by_category(p_yes: Floats, labels: Labels, categories: Sequence[str]) -> Mapping[str, Quality]:
    """Measure each category by itself, sorted by name."""
    names = np.array(categories)
    return {str(name): measure(p_yes[names == name], labels[names == name]) for name in np.unique(names)}


def auc(p_yes: Floats, labels: Labels) -> float:
    """Chance that a yes scores higher than a no, ties counting half; NaN where there is only one of them."""
    yes, no = p_yes[labels], p_yes[~labels]
    if not (len(yes) and len(no)):
        return float("nan")
    return float(mannwhitneyu(yes, no).statistic / (len(yes) * len(no)))


def reliability(p_yes: Floats, labels: Labels, bins: int = BINS) -> tuple[Floats, Floats, Floats]:
    """Mean P(yes), share of yes, and number of answers in each bin that has any, by P(yes)."""
    place = np.minimum((p_yes * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins).astype(float)
    kept = count > 0
    said = np.bincount(place, p_yes, bins)[kept] / count[kept]
    true = np.bincount(place, labels, bins)[kept] / count[kept]
    return said, true, count[kept]


def calibration_error(p_yes: Floats, labels: Labels, bins: int = BINS) -> float:
    """Mean distance, over all answers, between a bin's mean P(yes) and its share of yes."""
    said, true, count = reliability(p_yes, labels, bins)
    return float((np.abs(said - true) * count).sum() / count.sum())


def fit_temperature(log_odds: Floats, labels: Labels) -> float:
    """The temperature by which log-odds of yes (N,) are divided to make the labels likeliest.

    Source: Guo et al., "On calibration of modern neural networks" (arXiv 1706.04599), sec. 4.2. 1.0 where all
    labels are one: nothing can be told then.
    """
    if labels.all() or not labels.any():
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = log_odds / np.exp(log_temperature)
        return float(np.where(labels, np.logaddexp(0, -scaled), np.logaddexp(0, scaled)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))


def at_temperature(log_odds: Floats, temperature: float | Floats) -> Floats:
    """P(yes) of log-odds (N,) that are divided by `temperature`, one of all or one each."""
    return np.asarray(expit(log_odds / temperature))
