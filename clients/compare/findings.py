"""What runs say of the claims of arXiv 2505.17017: computed, never written beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import NormalDist

from rewardzoo.clients.compare.outcomes import (
    IN_DOMAIN,
    OUT_OF_DOMAIN,
    SPREAD,
    Gain,
    Outcomes,
    gains_of,
    mean_over_seeds,
)
from rewardzoo.clients.compare.runs import Run
from rewardzoo.clients.compare.study import MEAN, Finding, ScalingPoint, SearchPoint, Versus
from rewardzoo.clients.compare.summaries import Estimate

SPLITS = (IN_DOMAIN, OUT_OF_DOMAIN)
GRPO, DPO = "grpo", "dpo"
_NAMES = {GRPO: "GRPO", DPO: "DPO"}


@dataclass(frozen=True)
class Scaled:
    """A run with one value of an axis, e.g. 16 of "candidates per prompt"."""

    axis: str
    value: int
    run: Run


def versus(outcomes: Outcomes, images: int) -> tuple[Versus, ...]:
    """Compare DPO with GRPO on each split: reward by reward, and the mean of all rewards.

    Runs of one seed and reward are a pair. The mean takes seeds for which every reward has a pair, so that
    no reward weighs more in one seed than in another. `images` is how many each evaluation has.
    """
    about = {run.name: run for run in outcomes.runs}
    found: list[Versus] = []
    for split in SPLITS:
        gains = {
            (about[g.run].algorithm, about[g.run].reward, about[g.run].seed): g
            for g in outcomes.gains
            if g.judge == outcomes.judge and g.split == split and not g.own
        }
        pairs = {
            (reward, seed): (gains[DPO, reward, seed], grpo)
            for (algorithm, reward, seed), grpo in gains.items()
            if algorithm == GRPO and (DPO, reward, seed) in gains
        }
        rewards = list(dict.fromkeys(reward for reward, _ in pairs))
        seeds = list(dict.fromkeys(seed for _, seed in pairs))
        for reward in rewards:
            of_seeds = [[pairs[reward, seed]] for seed in seeds if (reward, seed) in pairs]
            found.append(_versus(reward, split, of_seeds, images, outcomes.confidence))
        whole = [seed for seed in seeds if all((reward, seed) in pairs for reward in rewards)]
        if whole:
            of_seeds = [[pairs[reward, seed] for reward in rewards] for seed in whole]
            found.append(_versus(MEAN, split, of_seeds, images, outcomes.confidence))
    return tuple(found)


def _versus(
    reward: str, split: str, of_seeds: Sequence[Sequence[tuple[Gain, Gain]]], images: int, confidence: float
) -> Versus:
    """Compare pairs of DPO and GRPO, of each seed as many."""
    gaps = [_mean([dpo.final - grpo.final for dpo, grpo in pairs]) for pairs in of_seeds]
    every = [pair for pairs in of_seeds for pair in pairs]
    spreads = ([dpo.spread for dpo, _ in every], [grpo.spread for _, grpo in every])
    variance = sum(_variance(of_runs, images) for of_runs in spreads)
    difference = _widened(mean_over_seeds(gaps, confidence), variance, confidence)
    base = _mean([grpo.final for _, grpo in every])
    return Versus(reward, split, len(of_seeds), difference, difference.value / base if base else math.nan)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _widened(found: Estimate, variance: float, confidence: float) -> Estimate:
    """Widen an interval over seeds to the one that the evaluations' images give, `variance` being theirs.

    A few seeds may agree by chance better than their images allow. Of one seed there is no interval: its
    images say nothing of how runs differ.
    """
    if not math.isfinite(found.high):
        return found
    half = max(found.high - found.value, _of_images(variance, confidence))
    return Estimate(found.value, found.value - half, found.value + half)


def _variance(spreads: Sequence[float], images: int) -> float:
    """Return the variance that a mean over runs has from the images of their evaluations."""
    return _mean([spread**2 for spread in spreads]) / (images * len(spreads))


def _of_images(variance: float, confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance)


def scaling(
    runs: Sequence[Scaled], judge: str, images: int, confidence: float
) -> tuple[tuple[ScalingPoint, ...], tuple[Finding, ...]]:
    """Tell what each value of each axis came to, and whether the largest beats the smallest.

    `images` is how many each evaluation has. Differences are paired by seed; of one seed nothing is decided.
    """
    points: list[ScalingPoint] = []
    findings: list[Finding] = []

    def key(each: Scaled) -> tuple[str, str]:
        return each.axis, each.run.algorithm

    for (axis, algorithm), group in groupby(sorted(runs, key=key), key):
        of_axis = list(group)
        for split in SPLITS:
            by_value: dict[int, dict[int, _Ended]] = {}
            for each in sorted(of_axis, key=lambda each: each.value):
                if ended := _ended(each.run, split, judge):
                    by_value.setdefault(each.value, {})[each.run.seed] = ended
            for value, of_value in by_value.items():
                final = _final(list(of_value.values()), images, confidence)
                gain = mean_over_seeds([e.gain.gain for e in of_value.values()], confidence)
                points.append(ScalingPoint(axis, value, algorithm, split, len(of_value), final, gain))
            if len(by_value) > 1:
                findings.append(_largest(axis, algorithm, split, by_value, images, confidence))
    return tuple(points), tuple(findings)


@dataclass(frozen=True)
class _Ended:
    """A run's gain by the judge, and the spread between the images of its last evaluation."""

    gain: Gain
    spread: float


def _ended(run: Run, split: str, judge: str) -> _Ended | None:
    gain = next((g for g in gains_of(run, {}) if (g.split, g.judge) == (split, judge)), None)
    spread = run.series(f"{SPREAD}/{split}/{judge}")[1]
    return _Ended(gain, float(spread[-1]) if len(spread) else math.nan) if gain else None


def _final(ended: Sequence[_Ended], images: int, confidence: float) -> Estimate:
    """Estimate the mean of what runs of several seeds came to; of one seed the interval is of its images."""
    found = mean_over_seeds([each.gain.final for each in ended], confidence)
    variance = _variance([each.spread for each in ended], images)
    if len(ended) == 1:
        half = _of_images(variance, confidence)
        return Estimate(found.value, found.value - half, found.value + half)
    return _widened(found, variance, confidence)


def _largest(
    axis: str,
    algorithm: str,
    split: str,
    by_value: dict[int, dict[int, _Ended]],
    images: int,
    confidence: float,
) -> Finding:
    least, most = min(by_value), max(by_value)
    seeds = sorted(by_value[least].keys() & by_value[most].keys())
    few, many = ([by_value[value][seed] for seed in seeds] for value in (least, most))
    found = Estimate(math.nan)
    if seeds:
        gaps = [more.gain.final - fewer.gain.final for fewer, more in zip(few, many, strict=True)]
        variance = sum(_variance([each.spread for each in ended], images) for ended in (few, many))
        found = _widened(mean_over_seeds(gaps, confidence), variance, confidence)
    where = split.replace("_", " ")
    return Finding(
        f"More {axis} help {_NAMES.get(algorithm, algorithm)} {where}.",
        f"{most:,} minus {least:,}, {_seeds(len(seeds))}",
        found,
    )


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def findings(
    outcomes: Outcomes, compared: Sequence[Versus], scaled: Sequence[Finding], search: Sequence[SearchPoint]
) -> tuple[Finding, ...]:
    """Put all claims of the paper beside what was measured."""
    found: list[Finding] = []
    for each in compared:
        if each.reward == MEAN:
            better, worse, sign = (DPO, GRPO, 1) if each.split == IN_DOMAIN else (GRPO, DPO, -1)
            claim = f"{_NAMES[better]} is better than {_NAMES[worse]} {each.split.replace('_', ' ')}."
            measure = (
                f"{_NAMES[better]} minus {_NAMES[worse]}, mean of {len(outcomes.rewards)} rewards, "
                f"{_seeds(each.seeds)}; DPO relative to GRPO: {each.relative:+.1%}"
            )
            found.append(Finding(claim, measure, _signed(each.difference, sign)))
    for t in outcomes.transfers:
        if t.split == OUT_OF_DOMAIN:
            name = _NAMES.get(t.algorithm, t.algorithm)
            found.append(
                Finding(
                    f"Rewards that pick better out of domain make better policies there by {name}.",
                    f"Spearman of best-of-{t.n} and {name}, {len(t.rewards)} rewards, p = {t.p:.2g}",
                    t.spearman,
                    t.p,
                )
            )
    found += scaled
    for split in dict.fromkeys(point.split for point in search):
        most = max((point for point in search if point.split == split), key=lambda point: point.n)
        least = "at least " if most.capped else ""
        found.append(
            Finding(
                f"Giving up paths without potential saves compute {split.replace('_', ' ')}.",
                f"{least}the share of image tokens saved with {most.n} paths, against the best-of-n that is "
                "right as often",
                most.saved,
                percent=True,
            )
        )
    return tuple(found)


def _signed(estimate: Estimate, sign: int) -> Estimate:
    if sign > 0:
        return estimate
    return Estimate(-estimate.value, -estimate.high, -estimate.low)
