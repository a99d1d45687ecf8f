"""What a search that gives paths up saves against the best-of-n that is right as often."""

from __future__ import annotations

import numpy as np

from rewardzoo.clients.compare.statistics import Bootstrap, Floats
from rewardzoo.clients.compare.study import SearchPoint


def search_point(
    split: str, n: int, right: Floats, drawn: Floats, worth: Floats, bootstrap: Bootstrap
) -> SearchPoint:
    """Compare a search among `n` paths of each of P prompts with best-of-n on the same prompts.

    `right` (P,) is the judge's score of what the search chose, `drawn` (P,) what it drew, in images.
    `worth` (P, N), N >= n, is what best-of-1 to best-of-N is worth, see `expected_picks`.
    """
    columns = np.column_stack([right, drawn, worth])
    resampled = bootstrap.ratios(columns, np.ones_like(columns))  # (resamples, 2 + N), prompts paired
    means = columns.mean(0)
    equal = equal_n(means[2:], means[0])
    equals = np.array([equal_n(row[2:], row[0]) for row in resampled])
    return SearchPoint(
        split,
        n,
        len(right),
        right=bootstrap.estimate(means[0], resampled[:, 0]),
        best_of_n=bootstrap.estimate(means[1 + n], resampled[:, 1 + n]),
        drawn=bootstrap.estimate(means[1], resampled[:, 1]),
        equal_n=bootstrap.estimate(equal, equals),
        saved=bootstrap.estimate(1 - means[1] / equal, 1 - resampled[:, 1] / equals),
        capped=bool(means[0] > means[2:].max()),
    )


def equal_n(worth: Floats, target: float) -> float:
    """Return with how many images best-of-n is worth `target`, between whole numbers by a straight line.

    `worth` (N,) is of 1 to N images; what falls with more is taken to stay. It is 1 where one image is worth
    that, and N where N are not.
    """
    rising = np.maximum.accumulate(worth)
    place = int(np.searchsorted(rising, target))
    if place == 0:
        return 1.0
    if place == len(rising):
        return float(len(rising))
    return float(place + (target - rising[place - 1]) / (rising[place] - rising[place - 1]))
