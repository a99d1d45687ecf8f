"""What training on a reward came to: the reward's own gain against that of judges it was not trained on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np

from rewardzoo.clients.compare.overoptimization import Alarm, OveroptimizationAlarm
from rewardzoo.clients.compare.runs import OWN, Floats, Run
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.clients.compare.summaries import BestOfN, DataInfo, Estimate, RewardInfo, Summary
from rewardzoo.clients.compare.transfer import Transfer, transfer_of

IN_DOMAIN, OUT_OF_DOMAIN = "in_domain", "out_of_domain"
SPREAD = "eval_std"
"""Metrics `eval_std/SPLIT/NAME` have the standard deviation between the images of an evaluation."""
_POINTS = 200


@dataclass(frozen=True)
class RunInfo:
    """A run; `alarms` are those that `OveroptimizationAlarm` would have given on its way."""

    name: str
    algorithm: str
    reward: str
    seed: int
    steps: int
    source: str
    alarms: tuple[Alarm, ...] = ()


@dataclass(frozen=True)
class Series:
    """A metric of a run over its steps, of long ones every k-th value."""

    run: str
    metric: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Gain:
    """How far a run moved one score on one split, from the policy it began with to its end.

    `own` says that the run was trained on that score. `base`, `final` and `best` are in the score's raw
    scale, and `spread` is the standard deviation of the base policy's images in it, NaN where nobody said.
    """

    run: str
    split: str
    judge: str
    own: bool
    base: float
    final: float
    best: float
    best_step: float
    spread: float

    @property
    def gain(self) -> float:
        """Final minus base in units of the base's spread."""
        return (self.final - self.base) / self.spread


@dataclass(frozen=True)
class Cell:
    """One algorithm on one reward, under one judge on one split: means over seeds, intervals by Student's t.

    `final` is in the judge's scale; `gain` in units of the base's spread; `hack_gap` is the gain of the
    reward that was trained on minus this judge's: what the policy learnt to please it with and nobody else.
    """

    algorithm: str
    reward: str
    split: str
    judge: str
    seeds: int
    base: Estimate
    final: Estimate
    gain: Estimate
    own_gain: Estimate
    hack_gap: Estimate


@dataclass(frozen=True)
class Outcomes(Summary):
    """RL runs, what they gained and lost.

    `judge` is the one whose scores the tables have; best-of-n results call it `pool_judge`. `scorers` are the
    rewards and judges that scored in the runs; what runs do not agree on of one's provenance is a list.
    """

    kind: ClassVar[str] = "outcomes"
    judge: str
    pool_judge: str
    scorers: tuple[RewardInfo, ...]
    runs: tuple[RunInfo, ...]
    gains: tuple[Gain, ...]
    cells: tuple[Cell, ...]
    transfers: tuple[Transfer, ...]
    series: tuple[Series, ...]


def summarize_runs(
    runs: Sequence[Run],
    *,
    name: str,
    judge: str | None = None,
    pool_judge: str | None = None,
    spread: Mapping[str, float] | None = None,
    pools: Iterable[BestOfN] = (),
    made: Mapping[str, Any] | None = None,
    bootstrap: Bootstrap | None = None,
) -> Outcomes:
    """Summarise runs.

    `judge` is a metric's NAME in `eval/SPLIT/NAME`; by default the one that all runs held out. `spread` maps
    such names to the standard deviation between the base policy's images, where the runs do not log it.
    `pools` are best-of-n results of the base policy; those count whose judge is named `pool_judge`, by
    default as `judge`.

    Raises:
        ValueError: there is no run or no evaluation, the judge cannot be told or is nowhere measured, or two
            runs have one name.
    """
    names = [run.name for run in runs]
    if len(set(names)) != len(names) or not runs:
        raise ValueError(f"runs must be one or more, of different names, got {', '.join(names) or 'none'}")
    judge = judge or _judge(runs)
    gains = tuple(gain for run in runs for gain in gains_of(run, spread or {}))
    if not any(gain.judge == judge and not gain.own for gain in gains):
        known = ", ".join(sorted({gain.judge for gain in gains if not gain.own})) or "none at all"
        raise ValueError(f"no run has eval/SPLIT/{judge} held out; judges there are: {known}")
    bootstrap = bootstrap or Bootstrap()
    cells = tuple(_cells(runs, gains, bootstrap.confidence))
    pools = [pool for pool in pools if pool.judge.name == (pool_judge or judge)]
    transfers = tuple(_transfers(cells, judge, pools, bootstrap))
    return Outcomes(
        data=DataInfo(name, "RL runs", "", "", 0, 0, 0, _fingerprint(runs)),
        rewards=tuple(RewardInfo(reward) for reward in dict.fromkeys(run.reward for run in runs)),
        confidence=bootstrap.confidence,
        resamples=bootstrap.resamples,
        seed=bootstrap.seed,
        made=made or {},
        judge=judge,
        pool_judge=pool_judge or judge,
        scorers=tuple(_scorers(runs)),
        runs=tuple(_info(run) for run in runs),
        gains=gains,
        cells=cells,
        transfers=transfers,
        series=tuple(series for run in runs for series in _curves(run)),
    )


def gains_of(run: Run, spread: Mapping[str, float]) -> Iterator[Gain]:
    """Yield a run's gains: of each judge on each split, and of its own reward while training.

    The own reward's is of split "training" where no evaluation has it: the first and the last tenth of steps.
    """
    for metric in run.metrics:
        kind, split, judge = (*metric.split("/", 2), "", "")[:3]
        if kind == "eval" and judge:
            steps, values = run.series(metric)
            if len(values):
                logged = run.series(f"{SPREAD}/{split}/{judge}")[1]
                unit = float(logged[0]) if len(logged) else spread.get(judge, math.nan)
                own = run.trained_on.keys() == {judge}
                yield _gain(run, split, judge, own, steps, values[:1], values[-1:], values, unit)
    steps, values = run.series(OWN)
    if len(values):
        tenth = max(1, len(values) // 10)
        logged = run.series("reward_std")[1]
        unit = float(logged[0]) if len(logged) else spread.get(run.reward, math.nan)
        yield _gain(run, "training", run.reward, True, steps, values[:tenth], values[-tenth:], values, unit)


def _gain(
    run: Run,
    split: str,
    judge: str,
    own: bool,
    steps: Floats,
    first: Floats,
    last: Floats,
    values: Floats,
    spread: float,
) -> Gain:
    best = int(values.argmax())
    return Gain(
        run.name,
        split,
        judge,
        own,
        float(first.mean()),
        float(last.mean()),
        float(values[best]),
        float(steps[best]),
        spread if spread > 0 else math.nan,
    )


def _scorers(runs: Sequence[Run]) -> Iterator[RewardInfo]:
    for name in dict.fromkeys(name for run in runs for name in run.provenance):
        told = [run.provenance[name] for run in runs if name in run.provenance]
        facts: dict[str, Any] = {}
        for key in dict.fromkeys(key for said in told for key in said):
            values = list(dict.fromkeys(str(said[key]) for said in told if key in said))
            facts[key] = values[0] if len(values) == 1 else values
        yield RewardInfo(name, 0, facts)


def _fingerprint(runs: Sequence[Run]) -> str:
    digest = hashlib.sha256()
    for run in runs:
        digest.update(repr((run.name, run.algorithm, dict(run.trained_on), run.seed)).encode())
        for metric in sorted(run.metrics):
            digest.update(metric.encode() + run.metrics[metric].tobytes())
    return digest.hexdigest()


def _judge(runs: Sequence[Run]) -> str:
    shared = [name for name in runs[0].held_out if all(name in run.held_out for run in runs)]
    if len(shared) != 1:
        raise ValueError(f"name the judge: all runs held out {', '.join(shared) or 'none in common'}")
    return shared[0]


def _info(run: Run) -> RunInfo:
    judges = [
        m for m in run.metrics if m.startswith(("judge/", "eval/")) and m.split("/")[-1] not in run.trained_on
    ]
    alarms: list[Alarm] = []
    # Evaluations are few and rest on many images each, training steps are many and noisy: blocks of each.
    for kind, block in (("judge/", 5), ("eval/", 1)):
        if chosen := [metric for metric in judges if metric.startswith(kind)]:
            alarm = OveroptimizationAlarm(judges=chosen, block=block)
            for i, step in enumerate(run.steps):
                alarm.update(int(step), {name: values[i] for name, values in run.metrics.items()})
            alarms += alarm.alarms
    return RunInfo(
        run.name, run.algorithm, run.reward, run.seed, int(run.steps[-1]), run.source, tuple(alarms)
    )


def _curves(run: Run) -> Iterator[Series]:
    for metric in run.metrics:
        if metric == OWN or metric.startswith(("judge/", "eval/")):
            steps, values = run.series(metric)
            every = max(1, math.ceil(len(steps) / _POINTS))
            yield Series(run.name, metric, tuple(steps[::every].tolist()), tuple(values[::every].tolist()))


def _cells(runs: Sequence[Run], gains: Sequence[Gain], confidence: float) -> Iterator[Cell]:
    about = {run.name: run for run in runs}
    own = {(g.run, g.split): g.gain for g in gains if g.own}
    groups: dict[tuple[str, str, str, str], list[Gain]] = {}
    for gain in gains:
        if not gain.own and gain.split != "training":
            run = about[gain.run]
            groups.setdefault((run.algorithm, run.reward, gain.split, gain.judge), []).append(gain)
    for (algorithm, reward, split, judge), found in groups.items():
        owns = [own.get((g.run, g.split), own.get((g.run, "training"), math.nan)) for g in found]
        gaps = [mine - g.gain for mine, g in zip(owns, found, strict=True)]
        columns = ([g.base for g in found], [g.final for g in found], [g.gain for g in found], owns, gaps)
        estimates = [mean_over_seeds(column, confidence) for column in columns]
        yield Cell(algorithm, reward, split, judge, len(found), *estimates)


def mean_over_seeds(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the mean of a few independent values and its interval by Student's t; of one there is none."""
    from scipy import stats

    n = len(values)
    mean = float(np.mean(values))
    if n < 2 or not math.isfinite(mean):
        return Estimate(mean)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half)


def _transfers(
    cells: Sequence[Cell], judge: str, pools: Sequence[BestOfN], bootstrap: Bootstrap
) -> Iterator[Transfer]:
    algorithms = dict.fromkeys(cell.algorithm for cell in cells)
    for pool, algorithm, split in product(pools, algorithms, (IN_DOMAIN, OUT_OF_DOMAIN)):
        trained = {
            cell.reward: cell.final
            for cell in cells
            if (cell.algorithm, cell.split, cell.judge) == (algorithm, split, judge)
        }
        if found := transfer_of(pool, algorithm, split, trained, bootstrap):
            yield found
