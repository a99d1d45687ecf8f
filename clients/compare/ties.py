"""How each benchmark counts a pair, ties of people and of the reward included.

A rule sees the gaps `score(a) - score(b)` (pairs,) and what people said, 1 for a, 0 for a tie, -1 for b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int8]

ACCURACY, WITHOUT_TIES = "accuracy", "accuracy_without_ties"

PROBABILITIES = np.arange(11) / 10
"""The thresholds on |P(a) - P(b)| that PickScore's evaluation tries."""


@dataclass(frozen=True)
class Judged:
    """What the pairs are worth: `credit` (pairs,) 0 to 1, of those that are `counted`."""

    credit: Floats
    counted: NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """A benchmark's way to count. `per_prompt` takes the mean of each prompt first, then over prompts.

    `judge` gives the metrics by name. With `fits_threshold` a threshold for ties is fitted first, on the
    pairs of the split "validation", which then do not count.
    """

    text: str
    judge: Callable[[Floats, Labels, float], Mapping[str, Judged]]
    per_prompt: bool = False
    fits_threshold: bool = False


def _hpdv2(gaps: Floats, labels: Labels, threshold: float) -> Mapping[str, Judged]:
    credit = np.where(gaps * labels < 0, 0.0, np.where((gaps == 0) & (labels != 0), 0.5, 1.0))
    return {ACCURACY: Judged(credit, np.ones(len(gaps), bool))}


def _imagereward(gaps: Floats, labels: Labels, threshold: float) -> Mapping[str, Judged]:
    return {ACCURACY: Judged((gaps * labels > 0).astype(float), labels != 0)}


def _pickapic(gaps: Floats, labels: Labels, threshold: float) -> Mapping[str, Judged]:
    predicted = np.where(np.abs(gaps) <= threshold, 0, np.sign(gaps))
    half = (predicted == 0) != (labels == 0)
    return {ACCURACY: Judged(np.where(half, 0.5, predicted == labels), np.ones(len(gaps), bool))}


def _mjbench(gaps: Floats, labels: Labels, threshold: float) -> Mapping[str, Judged]:
    right = (gaps * labels > 0).astype(float)
    return {ACCURACY: Judged(right, labels != 0), WITHOUT_TIES: Judged(right, (labels != 0) & (gaps != 0))}


def _plain(gaps: Floats, labels: Labels, threshold: float) -> Mapping[str, Judged]:
    return {ACCURACY: Judged(np.where(gaps == 0, 0.5, gaps * labels > 0), labels != 0)}


RULES: Mapping[str, Rule] = {
    "hpdv2": Rule(
        "1 minus the share of a prompt's pairs that are ordered the wrong way, mean over prompts; a tie of "
        "people cannot be wrong (HPSv2, inversion_score). A tie of the reward counts half: upstream's "
        "argsort orders it arbitrarily.",
        _hpdv2,
        per_prompt=True,
    ),
    "imagereward": Rule(
        "Pairs that people tied are left out; a tie of the reward is wrong (ImageReward, test.py).",
        _imagereward,
    ),
    "pickapic": Rule(
        "A gap up to a threshold is a tie of the reward; a tie on one side only counts half (PickScore, "
        "eval_preference_predictor.py). It is fitted on the validation split, and 0 where there is none.",
        _pickapic,
        fits_threshold=True,
    ),
    "mj-bench": Rule(
        "A tie of the reward is wrong in `accuracy` and left out in `accuracy_without_ties` (MJ-Bench).",
        _mjbench,
    ),
    "plain": Rule("Pairs that people tied are left out; a tie of the reward counts half.", _plain),
}
GENAI_BENCH = (
    "All pairs of images, of different prompts as well, with a tie of people right only where the reward's "
    "gap is up to a threshold, which is the best one on the same pairs (Deutsch et al. 2023, acc23 with tau "
    "optimisation, as in t2v_metrics). Intervals keep the threshold."
)


def fit_threshold(reward: str, gaps: Floats, labels: Labels) -> float:
    """Return the threshold with the highest accuracy by PickScore's rule, the lowest of several.

    PickScore's own scores are logits, and the thresholds tried are upstream's, on probabilities: a gap g
    of logits is a difference of tanh(g / 2). Other rewards have other scales, on which these mean nothing:
    for them the gaps that occur are tried.
    """
    if reward.partition(":")[0] == "pickscore":
        with np.errstate(divide="ignore"):
            tried = 2 * np.arctanh(PROBABILITIES)
    else:
        tried = np.unique(np.append(0.0, np.abs(gaps)))
    # Credit is 1 for a tie of people and 1/2 else where the reward sees a tie, so counts below a gap do.
    sizes = np.abs(gaps)
    order = np.argsort(sizes)
    sizes = sizes[order]
    tied = np.where(labels == 0, 1.0, 0.5)[order]
    untied = np.where(labels == 0, 0.5, np.sign(gaps) == labels)[order]
    untied = np.where(sizes == 0, tied, untied)
    below = np.searchsorted(sizes, tried, side="right")
    gained = np.concatenate([[0.0], np.cumsum(tied)])[below]
    kept = untied.sum() - np.concatenate([[0.0], np.cumsum(untied)])[below]
    return float(tried[np.argmax(gained + kept)])
