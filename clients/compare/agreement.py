"""How alike rewards order images, and where they disagree most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from rewardzoo.clients.compare.examples import disagreements, with_images
from rewardzoo.clients.compare.statistics import (
    Bootstrap,
    Floats,
    kendall,
    kendall_rows,
    spearman,
    spearman_rows,
)
from rewardzoo.clients.compare.store import ScoreStore
from rewardzoo.clients.compare.summaries import Agreement, Estimate, Example, RankCorrelation
from rewardzoo.clients.compare.tables import Indices, by_prompt, codes

OVERALL_RESAMPLES = 200
"""A correlation over all images is computed anew in each resample, so there are fewer."""
OVERALL_ITEMS = 20_000
"""With more images there is no interval for it."""
_MEASURES = {"kendall": (kendall, kendall_rows), "spearman": (spearman, spearman_rows)}


def agreement(
    store: ScoreStore,
    rewards: Sequence[str],
    bootstrap: Bootstrap,
    made: Mapping[str, Any],
    *,
    folder: Path,
    examples: int = 6,
) -> Agreement:
    """Correlate every two rewards that have scored a store, and pick where they disagree.

    Copies of the images that examples show go to `folder`, the comparison's. Items that one of two rewards
    could not score are left out for these two.

    Raises:
        ValueError: fewer than two rewards.
    """
    names = list(dict.fromkeys(rewards))
    if len(names) < 2:
        raise ValueError(f"agreement is between rewards: name two or more, got {names}")
    prompts, _ = codes(store.items(["prompt_id"])["prompt_id"])
    scores = {name: store.scores(name).astype(float) for name in names}
    correlations: list[RankCorrelation] = []
    found: list[Example] = []
    for a, b in combinations(names, 2):
        pools = by_prompt(prompts, ~np.isnan(scores[a] + scores[b]))
        for measure, (whole, each) in _MEASURES.items():
            inside, known = _within_prompts(scores[a], scores[b], pools, each, bootstrap)
            overall = _overall(scores[a], scores[b], pools, whole, bootstrap)
            correlations.append(RankCorrelation(a, b, measure, "prompt", inside, known))
            correlations.append(RankCorrelation(a, b, measure, "overall", overall, len(pools)))
        found += disagreements(store, a, b, scores, pools, examples)
    return Agreement(
        **store.head(names, bootstrap, made),
        correlations=tuple(correlations),
        examples=tuple(with_images(store, folder, found)),
    )


def _within_prompts(
    a: Floats,
    b: Floats,
    pools: Sequence[Indices],
    correlate: Callable[[Floats, Floats], Floats],
    bootstrap: Bootstrap,
) -> tuple[Estimate, int]:
    """Average the correlation among each prompt's images, and say of how many prompts there is one."""
    values = np.array([np.nan])
    for rows in _of_one_size(pools):
        values = np.append(values, correlate(a[rows], b[rows]))
    return bootstrap.mean(values), int((~np.isnan(values)).sum())


def _of_one_size(pools: Sequence[Indices]) -> Iterator[Indices]:
    """Stack the pools of two or more that have the same size: (pools, size)."""
    by_size: dict[int, list[Indices]] = {}
    for pool in pools:
        by_size.setdefault(len(pool), []).append(pool)
    for size, alike in by_size.items():
        if size > 1:
            yield np.stack(alike)


def _overall(
    a: Floats,
    b: Floats,
    pools: Sequence[Indices],
    correlate: Callable[[Floats, Floats], float],
    bootstrap: Bootstrap,
) -> Estimate:
    """Correlate all images at once."""
    if not pools:
        return Estimate(np.nan)

    def over(drawn: Indices) -> float:
        rows = np.concatenate([pools[i] for i in drawn])
        return correlate(a[rows], b[rows])

    if sum(map(len, pools)) > OVERALL_ITEMS:
        return Estimate(over(np.arange(len(pools))))
    few = Bootstrap(min(OVERALL_RESAMPLES, bootstrap.resamples), bootstrap.confidence, bootstrap.seed)
    return few.statistic(over, len(pools))
