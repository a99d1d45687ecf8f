"""Pairwise accuracy over all images of all prompts, as GenAI-Bench has it. Source: arXiv 2305.14324."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Rows of a block of the images-by-images table: 10,000 images make 20 MB of it.
_ROWS = 256


def best_threshold(scores: Floats, ratings: Floats) -> float:
    """Return the gap of scores up to which calling two images tied makes the accuracy best.

    O(N^2 log N) for N images, in memory for N^2 / 2 gaps. Source: tau_optimization.py of t2v_metrics; only
    gaps of pairs that people tied can be best, or 0.
    """
    agreeing, tied = [], []
    for start in range(0, len(scores), _ROWS):
        gaps, said = _block(scores, ratings, start)
        sizes = np.abs(gaps)
        agreeing.append(sizes[(gaps * said > 0) & _later(start, gaps.shape)])
        tied.append(sizes[(said == 0) & _later(start, gaps.shape)])
    right, even = np.sort(np.concatenate(agreeing)), np.sort(np.concatenate(tied))
    tried = np.append(0.0, even)
    gained = np.searchsorted(even, tried, side="right")
    kept = len(right) - np.searchsorted(right, tried, side="right")
    return float(tried[np.argmax(gained + kept)])


def count_pairs(
    scores: Floats, ratings: Floats, prompts: NDArray[np.intp], threshold: float
) -> tuple[Floats, Floats]:
    """Count right pairs and all pairs by the prompts of their images, (P, P) each, zero below the diagonal.

    `prompts` has the prompt of each image, 0 to P - 1, in ascending order.
    """
    count = int(prompts[-1]) + 1
    starts = np.searchsorted(prompts, np.arange(count))
    right, total = np.zeros((count, count)), np.zeros((count, count))
    for start in range(0, len(scores), _ROWS):
        gaps, said = _block(scores, ratings, start)
        later = _later(start, gaps.shape)
        as_said = np.where(np.abs(gaps) <= threshold, said == 0, gaps * said > 0)
        rows = prompts[start : start + _ROWS]
        for table, what in ((right, as_said & later), (total, later)):
            np.add.at(table, rows, np.add.reduceat(what, starts, axis=1, dtype=float))
    return right, total


def _block(scores: Floats, ratings: Floats, start: int) -> tuple[Floats, Floats]:
    rows = slice(start, start + _ROWS)
    return scores[rows, None] - scores, ratings[rows, None] - ratings


def _later(start: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Say which columns come behind the row's own image, so that each pair is there once."""
    return np.arange(shape[1]) > (start + np.arange(shape[0]))[:, None]
