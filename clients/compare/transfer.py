"""Does best-of-n with a reward, which costs an evaluation, foretell training on it, which costs a month?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rewardzoo.clients.compare.statistics import Bootstrap, spearman, spearman_rows
from rewardzoo.clients.compare.summaries import BestOfN, Estimate

BEST_OF = 4
"""The n of the paper's best-of-n (arXiv 2505.17017)."""
# Two rewards always correlate by 1 or -1.
_FEWEST = 3
# All orders of up to so many rewards are tried, 40,320 of 8; of more, as many at random.
_MOST_ORDERED = 8


@dataclass(frozen=True)
class Transfer:
    """Whether best-of-n with a reward foretells training on it: their rank correlation over rewards.

    `best_of_n` and `trained` are the judge's scores by reward, in the order of `rewards`. The interval is of
    the bootstrap over rewards, each point drawn within its own interval; of a handful of rewards it is
    rather too narrow. `p` is exact: the share of all orders that correlate so much, either way.
    """

    algorithm: str
    split: str
    n: int
    rewards: tuple[str, ...]
    best_of_n: tuple[Estimate, ...]
    trained: tuple[Estimate, ...]
    spearman: Estimate
    p: float


def transfer_of(
    pool: BestOfN, algorithm: str, split: str, trained: Mapping[str, Estimate], bootstrap: Bootstrap
) -> Transfer | None:
    """Correlate what rewards pick from a pool with what training on them came to, `trained` by reward.

    None where fewer than three rewards have both.
    """
    n, picked = picks(pool, split)
    rewards = tuple(reward for reward in picked if reward in trained)
    if len(rewards) < _FEWEST:
        return None
    x = tuple(picked[reward] for reward in rewards)
    y = tuple(trained[reward] for reward in rewards)
    return Transfer(algorithm, split, n, rewards, x, y, *_correlation(x, y, bootstrap))


def picks(pool: BestOfN, split: str) -> tuple[int, dict[str, Estimate]]:
    """Return the n of best-of-n, `BEST_OF` or the most there are, and what each selector picks out of n."""
    curves = [curve for curve in pool.curves if curve.split == split and curve.n]
    n = min((min(BEST_OF, max(curve.n)) for curve in curves), default=0)
    found = {}
    for curve in curves:
        if n in curve.n:
            at = curve.n.index(n)
            found[curve.selector] = Estimate(curve.value[at], curve.low[at], curve.high[at])
    return n, found


def _correlation(
    x: Sequence[Estimate], y: Sequence[Estimate], bootstrap: Bootstrap
) -> tuple[Estimate, float]:
    rng = np.random.default_rng(bootstrap.seed)
    width = 2 * NormalDist().inv_cdf((1 + bootstrap.confidence) / 2)
    centers = np.array([[e.value for e in each] for each in (x, y)])
    errors = np.nan_to_num([[(e.high - e.low) / width for e in each] for each in (x, y)])
    value = spearman(*centers)

    def drawn(rows: NDArray[np.intp]) -> float:
        return spearman(*(centers[:, rows] + errors[:, rows] * rng.standard_normal((2, len(rows)))))

    found = bootstrap.statistic(drawn, len(x))
    return Estimate(value, found.low, found.high), _p(centers, value, rng)


def _p(centers: NDArray[np.float64], value: float, rng: np.random.Generator) -> float:
    if not math.isfinite(value):
        return math.nan
    count = centers.shape[1]
    if count <= _MOST_ORDERED:
        orders = np.array(list(permutations(range(count))))
    else:
        orders = rng.permuted(np.tile(np.arange(count), (math.factorial(_MOST_ORDERED), 1)), axis=1)
    others = spearman_rows(np.tile(centers[0], (len(orders), 1)), centers[1][orders])
    return float(np.mean(np.abs(others) >= abs(value) - 1e-9))
