"""How often rewards prefer what people prefer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardzoo.clients.compare.across_prompts import best_threshold, count_pairs
from rewardzoo.clients.compare.statistics import Bootstrap, Floats, contrast, corrected
from rewardzoo.clients.compare.store import ScoreStore
from rewardzoo.clients.compare.summaries import ALL, Accuracy, Preference
from rewardzoo.clients.compare.tables import Indices, by_category, codes
from rewardzoo.clients.compare.ties import ACCURACY, GENAI_BENCH, RULES, Labels, Rule, fit_threshold

_ACROSS_PROMPTS = "genai-bench"
_VALIDATION = "validation"


@dataclass(frozen=True)
class _Drawn:
    """An accuracy, and what it was in each resample."""

    accuracy: Accuracy
    drawn: Floats


def preference(
    store: ScoreStore, rewards: Sequence[str], bootstrap: Bootstrap, made: Mapping[str, Any]
) -> Preference:
    """Measure the accuracy of rewards that have scored a store, by category, with paired contrasts.

    Pairs are counted as the store's benchmark does (`ties.RULES`). A pair that any of the rewards could not
    score is left out for all, so that they are compared on the same pairs.

    Raises:
        ValueError: the data has no judged pairs, or none that count.
    """
    names = list(dict.fromkeys(rewards))
    scores = {name: store.scores(name).astype(float) for name in names}
    across = store.info.benchmark == _ACROSS_PROMPTS
    measured = list((_across_prompts if across else _by_pairs)(store, scores, bootstrap))
    overall = {(m.accuracy.reward, m.accuracy.category, m.accuracy.metric): m for m in measured}
    if not overall:
        raise ValueError(f"{store.info.source}: no pair counts that all of {', '.join(names)} could score")
    contrasts = []
    for a, b in combinations(names, 2):
        one, other = overall[a, ALL, ACCURACY], overall[b, ALL, ACCURACY]
        value = one.accuracy.estimate.value - other.accuracy.estimate.value
        contrasts.append(contrast(a, b, ALL, value, one.drawn - other.drawn, bootstrap))
    return Preference(
        **store.head(names, bootstrap, made),
        rule=GENAI_BENCH if across else rule_of(store.info.benchmark).text,
        accuracies=tuple(m.accuracy for m in measured),
        contrasts=corrected(contrasts),
    )


def rule_of(benchmark: str) -> Rule:
    """Return how a benchmark counts pairs; a format without a rule of its own counts as the plain one."""
    return RULES.get(benchmark, RULES["plain"])


def _by_pairs(store: ScoreStore, scores: Mapping[str, Floats], bootstrap: Bootstrap) -> Iterator[_Drawn]:
    rule, table = rule_of(store.info.benchmark), store.pairs()
    if not len(table):
        raise ValueError(f"{store.info.source} has no judged pairs: compare with best-of-n or agreement")
    items = store.items(["prompt_id", "split"])
    a, b = table["a"].to_numpy(), table["b"].to_numpy()
    labels: Labels = table["label"].to_numpy()
    prompts = codes(items["prompt_id"])[0][a]
    gaps = {name: values[a] - values[b] for name, values in scores.items()}
    known = ~np.isnan(np.stack(list(gaps.values()))).any(0)
    thresholds = dict.fromkeys(scores, 0.0)
    if rule.fits_threshold:
        fitted_on = (items["split"].to_numpy(zero_copy_only=False) == _VALIDATION)[a]
        if (fit := fitted_on & known).any():
            thresholds = {name: fit_threshold(name, gap[fit], labels[fit]) for name, gap in gaps.items()}
            known &= ~fitted_on
    for category, rows in by_category(table["categories"]).items():
        rows = rows[known[rows]]
        judged = {n: rule.judge(gap[rows], labels[rows], thresholds[n]) for n, gap in gaps.items()}
        for metric in next(iter(judged.values())):
            chosen = [by_metric[metric] for by_metric in judged.values()]
            top = _sums(prompts[rows], [np.where(j.counted, j.credit, 0) for j in chosen])
            bottom = _sums(prompts[rows], [j.counted for j in chosen])
            if rule.per_prompt:
                counted = bottom.all(1)
                top, bottom = top[counted] / bottom[counted], np.ones_like(bottom[counted])
            if not bottom.any():
                continue
            drawn, values = bootstrap.ratios(top, bottom), top.sum(0) / bottom.sum(0)
            for k, (name, one) in enumerate(zip(judged, chosen, strict=True)):
                estimate = bootstrap.estimate(values[k], drawn[:, k])
                count = int(one.counted.sum())
                yield _Drawn(
                    Accuracy(name, category, metric, estimate, count, len(top), thresholds[name]), drawn[:, k]
                )


def _sums(prompts: Indices, columns: Sequence[NDArray[Any]]) -> Floats:
    """Add up what the rows of each prompt have: (prompts, columns)."""
    places = np.unique(prompts, return_inverse=True)[1]
    return np.stack([np.bincount(places, column.astype(float)) for column in columns], axis=1)


def _across_prompts(
    store: ScoreStore, scores: Mapping[str, Floats], bootstrap: Bootstrap
) -> Iterator[_Drawn]:
    table = store.items(["prompt_id", "rating", "categories"])
    ratings = table["rating"].to_numpy()
    known = ~np.isnan(np.stack([ratings, *scores.values()])).any(0)
    prompts = codes(table["prompt_id"])[0]
    for category, rows in by_category(table["categories"]).items():
        rows = rows[known[rows]]
        rows = rows[np.argsort(prompts[rows], kind="stable")]
        if len(rows) < 2:
            continue
        said, places = ratings[rows], np.unique(prompts[rows], return_inverse=True)[1]
        for name, values in scores.items():
            threshold = best_threshold(values[rows], said)
            right, total = count_pairs(values[rows], said, places, threshold)
            drawn, count = bootstrap.between_prompts(right, total), total.sum()
            estimate = bootstrap.estimate(right.sum() / count, drawn)
            accuracy = Accuracy(name, category, ACCURACY, estimate, int(count), len(total), threshold)
            yield _Drawn(accuracy, drawn)
