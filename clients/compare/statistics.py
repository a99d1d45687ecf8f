"""Intervals and tests by the bootstrap over prompts, and rank correlations.

What several images of one prompt say is not independent, so prompts are drawn, never pairs or images. All
rewards are drawn alike, so that a difference of two is paired. Intervals are percentiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewardzoo.clients.compare.summaries import Contrast, Estimate

Floats = NDArray[np.float64]

# Numbers of a block of draws: 8 bytes each, so that 100,000 prompts cost 32 MB at a time.
_BLOCK = 4_000_000
# Sums of the same numbers may differ by so much; two equal rewards must not seem to differ for it.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Bootstrap:
    """How to draw: `resamples` times, the same draws for the same `seed` and number of prompts."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 100 or not 0.5 <= self.confidence < 1:
            raise ValueError(
                "resamples must be 100 or more and confidence in [0.5, 1), "
                f"got {self.resamples} and {self.confidence}"
            )

    def draws(self, prompts: int) -> Iterator[Floats]:
        """Yield blocks (b, prompts) of how often a resample has each prompt; b sums to `resamples`."""
        rng = np.random.default_rng(self.seed)
        left = self.resamples
        while left:
            rows = min(left, max(1, _BLOCK // max(prompts, 1)))
            drawn = rng.integers(prompts, size=(rows, prompts))
            drawn += prompts * np.arange(rows)[:, None]
            yield np.bincount(drawn.ravel(), minlength=rows * prompts).reshape(rows, prompts).astype(float)
            left -= rows

    def ratios(self, top: Floats, bottom: Floats) -> Floats:
        """Draw `sum(top) / sum(bottom)` over prompts, for all columns (P, K) alike: (resamples, K).

        With a `bottom` of ones it is the mean over prompts. NaN where a resample has nothing to divide by.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.concatenate([(w @ top) / (w @ bottom) for w in self.draws(len(top))])

    def between_prompts(self, top: Floats, bottom: Floats) -> Floats:
        """Draw a ratio of sums over pairs of images of any prompts: (resamples,).

        `top` and `bottom` (P, P) have those between prompt p and q at [p, q], p <= q, and zero below. Of a
        prompt that is drawn twice, the images are not compared with their own copies.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.concatenate([_quadratic(w, top) / _quadratic(w, bottom) for w in self.draws(len(top))])

    def estimate(self, value: float, drawn: Floats) -> Estimate:
        """Put the interval of what was drawn (resamples,) round a value."""
        if np.isnan(value) or np.isnan(drawn).all():
            return Estimate(float(value))
        tail = (1 - self.confidence) / 2
        low, high = np.nanquantile(drawn, [tail, 1 - tail])
        return Estimate(float(value), float(low), float(high))

    def mean(self, values: ArrayLike) -> Estimate:
        """Estimate a mean over prompts, from one value a prompt (P,); NaN is left out."""
        known = np.asarray(values, float)
        known = known[~np.isnan(known)]
        if not len(known):
            return Estimate(np.nan)
        return self.estimate(known.mean(), self.ratios(known[:, None], np.ones((len(known), 1)))[:, 0])

    def statistic(self, function: Callable[[NDArray[np.intp]], float], count: int) -> Estimate:
        """Estimate any function of the rows (count,) that are drawn, called once a resample."""
        everything = np.arange(count)
        rows = (np.repeat(everything, w.astype(int)) for block in self.draws(count) for w in block)
        return self.estimate(function(everything), np.array([function(row) for row in rows]))


def _quadratic(weights: Floats, table: Floats) -> Floats:
    inside = np.diag(table)
    between = np.einsum("bp,bp->b", weights @ (table - np.diag(inside)), weights)
    return np.asarray(between + weights @ inside)


def p_value(drawn: Floats) -> float:
    """Two-sided p of "no difference" from drawn differences (resamples,): where their interval reaches 0.

    Never 0: with B draws the smallest is 2 / (B + 1).
    """
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return float("nan")
    beyond = min((known <= _ROUNDING).sum(), (known >= -_ROUNDING).sum())
    return float(min(1.0, 2 * (beyond + 1) / (len(known) + 1)))


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number, by Holm's step-down; NaN stays and is not counted."""
    values = np.asarray(p, float)
    corrected = values.copy()
    order = np.argsort(values)  # NaN comes last
    known = int((~np.isnan(values)).sum())
    running = 0.0
    for rank, place in enumerate(order[:known]):
        running = max(running, min(1.0, (known - rank) * values[place]))
        corrected[place] = running
    return [float(value) for value in corrected]


def contrast(a: str, b: str, split: str, value: float, drawn: Floats, bootstrap: Bootstrap) -> Contrast:
    """Put a difference `a - b` and its draws (resamples,) into words; `corrected` sets its `p_holm`."""
    return Contrast(a, b, split, bootstrap.estimate(value, drawn), p_value(drawn), float("nan"))


def corrected(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    """Correct the p-values of all contrasts of a summary."""
    values = holm([found.p for found in contrasts])
    return tuple(replace(found, p_holm=p) for found, p in zip(contrasts, values, strict=True))


def kendall(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b of two rows of numbers, NaN where one of them is constant."""
    from scipy import stats

    return float(stats.kendalltau(a, b).statistic)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two rows of numbers, NaN where one of them is constant."""
    from scipy import stats

    ranks = stats.rankdata(np.stack([np.asarray(a, float), np.asarray(b, float)]), axis=1)
    return float(_correlate(ranks[:1], ranks[1:])[0])


def kendall_rows(a: Floats, b: Floats) -> Floats:
    """Tau-b of each row of (P, N) with its fellow: (P,); scipy has no fast one for many short rows."""
    first, second = np.triu_indices(a.shape[1], 1)
    signs_a, signs_b = (np.sign(x[:, first] - x[:, second]) for x in (a, b))
    untied = np.abs(signs_a).sum(1) * np.abs(signs_b).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((signs_a * signs_b).sum(1) / np.sqrt(untied))


def spearman_rows(a: Floats, b: Floats) -> Floats:
    """Spearman's correlation of each row of (P, N) with its fellow: (P,)."""
    from scipy import stats

    return _correlate(stats.rankdata(a, axis=1), stats.rankdata(b, axis=1))


def _correlate(a: Floats, b: Floats) -> Floats:
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1)))
