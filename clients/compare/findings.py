"""What runs say of the claims of arXiv 2505.17017: computed, never written beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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


def versus(outcomes: Outcomes) -> tuple[Versus, ...]:
    """Compare DPO with GRPO on each split: reward by reward, and the mean of all rewards.

    Runs of one seed and reward are a pair. The mean takes seeds for which every reward has a pair, so that
    no reward weighs more in one seed than in another.
    """
    about = {run.name: run for run in outcomes.runs}
    found: list[Versus] = []
    for split in SPLITS:
        finals = {
            (about[g.run].algorithm, about[g.run].reward, about[g.run].seed): g.final
            for g in outcomes.gains
            if g.judge == outcomes.judge and g.split == split and not g.own
        }
        pairs = {
            (reward, seed): (finals[DPO, reward, seed], grpo)
            for (algorithm, reward, seed), grpo in finals.items()
            if algorithm == GRPO and (DPO, reward, seed) in finals
        }
        rewards = list(dict.fromkeys(reward for reward, _ in pairs))
        for reward in rewards:
            of_reward = [pair for (name, _), pair in pairs.items() if name == reward]
            found.append(_versus(reward, split, of_reward, outcomes.confidence))
        seeds = dict.fromkeys(seed for _, seed in pairs)
        whole = [seed for seed in seeds if all((reward, seed) in pairs for reward in rewards)]
        means = [_mean([pairs[reward, seed] for reward in rewards]) for seed in whole]
        if means:
            found.append(_versus(MEAN, split, means, outcomes.confidence))
    return tuple(found)


def _versus(reward: str, split: str, pairs: Sequence[tuple[float, float]], confidence: float) -> Versus:
    difference = mean_over_seeds([dpo - grpo for dpo, grpo in pairs], confidence)
    base = _mean(pairs)[1]
    return Versus(reward, split, len(pairs), difference, difference.value / base if base else math.nan)


def _mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(dpo for dpo, _ in pairs) / len(pairs), sum(grpo for _, grpo in pairs) / len(pairs)


def scaling(
    runs: Sequence[Scaled], judge: str, images: int, confidence: float
) -> tuple[tuple[ScalingPoint, ...], tuple[Finding, ...]]:
    """Tell what each value of each axis came to, and whether the largest beats the smallest.

    `images` is how many each evaluation has. Differences are paired by seed.
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
                final = _estimate([e.gain.final for e in of_value.values()], of_value, images, confidence)
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


def _estimate(
    values: Sequence[float], ended: dict[int, _Ended], images: int, confidence: float, runs: int = 1
) -> Estimate:
    """Estimate a mean over seeds; of one seed the interval is that of `runs` evaluations' images."""
    if len(values) > 1:
        return mean_over_seeds(values, confidence)
    variance = sum(each.spread**2 for each in ended.values()) / len(ended) * runs
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance / images)
    return Estimate(values[0], values[0] - half, values[0] + half)


def _largest(
    axis: str,
    algorithm: str,
    split: str,
    by_value: dict[int, dict[int, _Ended]],
    images: int,
    confidence: float,
) -> Finding:
    least, most = min(by_value), max(by_value)
    shared = by_value[least].keys() & by_value[most].keys()
    gaps = [by_value[most][seed].gain.final - by_value[least][seed].gain.final for seed in sorted(shared)]
    both = {place: by_value[value][seed] for place, (value, seed) in enumerate(_places(least, most, shared))}
    found = _estimate(gaps, both, images, confidence, runs=2) if gaps else Estimate(math.nan)
    where = split.replace("_", " ")
    return Finding(
        f"More {axis} help {_NAMES.get(algorithm, algorithm)} {where}.",
        f"{most:,} minus {least:,}, {_seeds(len(gaps))}",
        found,
    )


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _places(least: int, most: int, seeds: set[int]) -> Iterator[tuple[int, int]]:
    for seed in seeds:
        yield from ((least, seed), (most, seed))


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
