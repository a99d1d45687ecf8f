"""Selection: how good is the image that a reward picks out of n, by a judge that is not the reward?

Each image of a pool is scored once. What a pick is worth is then the exact mean over all subsets of n of the
pool's N, not a sample of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rewardzoo.clients.compare.statistics import Bootstrap, Floats, contrast, corrected
from rewardzoo.clients.compare.store import ScoreStore
from rewardzoo.clients.compare.summaries import ALL, BestOfN, Curve, Gap, RewardInfo
from rewardzoo.clients.compare.tables import Indices, by_prompt, codes

ORACLE, RANDOM = "oracle", "random"


def expected_picks(scores: Floats, judged: Floats) -> Floats:
    """Return what the highest-scored of n images is worth, expected over all subsets of n: (N,), n from 1.

    `scores` and `judged` are (N,), what picks and what counts. Images that tie for the pick share it. An
    image without a score is picked only where none has one.

    The highest of a subset is among those up to an image, hi of them, and not among those below it, lo,
    with probability (C(hi, n) - C(lo, n)) / C(N, n), which the image shares with those of its score.
    """
    from scipy import stats

    filled = np.where(np.isnan(scores), -np.inf, scores)
    low = stats.rankdata(filled, "min").astype(int) - 1
    high = stats.rankdata(filled, "max").astype(int)
    inside = _share_of_subsets(len(scores))
    weights = (inside[high] - inside[low]) / (high - low)[:, None]
    return np.asarray(judged @ weights)


def _share_of_subsets(count: int) -> Floats:
    """Return C(k, n) / C(count, n) for k from 0 to count and n from 1 to count."""
    members, drawn = np.arange(count + 1)[:, None], np.arange(count)
    return np.asarray(np.cumprod(np.maximum(members - drawn, 0) / (count - drawn), axis=1))


def best_of_n(
    store: ScoreStore,
    rewards: Sequence[str],
    judge: RewardInfo,
    judged: Floats,
    bootstrap: Bootstrap,
    made: Mapping[str, Any],
) -> BestOfN:
    """Draw the selection curves of rewards that have scored a pool, overall and by split.

    `judged` (items,) is the judge's score of each image. An image it could not score is left out; n goes up
    to the fewest images that a prompt of the split has then.

    Raises:
        ValueError: no prompt of the pool has two judged images.
    """
    names = list(dict.fromkeys(rewards))
    table = store.items(["prompt_id", "split"])
    prompts, _ = codes(table["prompt_id"])
    splits, split_names = codes(table["split"])
    scores = {name: store.scores(name).astype(float) for name in names} | {ORACLE: judged}
    curves, gaps, contrasts = [], [], []
    for split in (ALL, *(name for name in split_names if name and len(split_names) > 1)):
        inside = np.ones(len(judged), bool) if split == ALL else splits == split_names.index(split)
        pools = [pool for pool in by_prompt(prompts, inside & ~np.isnan(judged)) if len(pool) > 1]
        if not pools:
            continue
        worth = _worth(scores, judged, pools)  # (P, n) by selector
        worth[RANDOM] = np.repeat(worth[ORACLE][:, :1], worth[ORACLE].shape[1], axis=1)
        drawn = {name: bootstrap.ratios(values, np.ones_like(values)) for name, values in worth.items()}
        curves += [_curve(name, split, worth[name], drawn[name], bootstrap) for name in worth]
        last = {name: (values[:, -1].mean(), drawn[name][:, -1]) for name, values in worth.items()}
        gaps += [_gap(name, split, worth[name].shape[1], last, bootstrap) for name in names]
        for a, b in combinations(names, 2):
            value, difference = last[a][0] - last[b][0], last[a][1] - last[b][1]
            contrasts.append(contrast(a, b, split, value, difference, bootstrap))
    if not curves:
        raise ValueError(f"{store.info.source}: no prompt has two images that {judge.name} judged")
    return BestOfN(
        **store.head(names, bootstrap, made),
        judge=judge,
        curves=tuple(curves),
        gaps=tuple(gaps),
        contrasts=corrected(contrasts),
    )


def _worth(scores: Mapping[str, Floats], judged: Floats, pools: Sequence[Indices]) -> dict[str, Floats]:
    most = min(map(len, pools))
    return {
        name: np.stack([expected_picks(values[pool], judged[pool])[:most] for pool in pools])
        for name, values in scores.items()
    }


def _curve(name: str, split: str, worth: Floats, drawn: Floats, bootstrap: Bootstrap) -> Curve:
    prompts, most = worth.shape
    points = [bootstrap.estimate(worth[:, k].mean(), drawn[:, k]) for k in range(most)]
    values, low, high = zip(*((p.value, p.low, p.high) for p in points), strict=True)
    return Curve(name, split, prompts, tuple(range(1, most + 1)), values, low, high)


def _gap(
    name: str, split: str, n: int, last: Mapping[str, tuple[float, Floats]], bootstrap: Bootstrap
) -> Gap:
    (value, drawn), (best, best_drawn), (chance, chance_drawn) = last[name], last[ORACLE], last[RANDOM]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.divide(value - chance, best - chance)
        shares = (drawn - chance_drawn) / (best_drawn - chance_drawn)
    return Gap(
        name,
        split,
        n,
        bootstrap.estimate(best - value, best_drawn - drawn),
        bootstrap.estimate(float(share), shares),
    )
