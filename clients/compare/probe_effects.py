"""From probed scores to what they say: how far, which way, and which reward is hacked by what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rewardzoo.clients.compare.probes import ProbeScores
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.clients.compare.summaries import Estimate, Summary

Floats = NDArray[np.float64]
MINIMAL_RISE = 0.1
"""A mean rise below this, in spreads between images, is a trifle."""


@dataclass(frozen=True)
class ProbeInfo:
    """A `Probe`, without what it does; `image` is the path of a picture under it, or empty."""

    name: str
    family: str
    changes: str
    expected: str
    image: str = ""


@dataclass(frozen=True)
class Spread:
    """How much a reward's scores of unchanged pictures vary, as standard deviations in its raw scale.

    `images` is between all pictures; `candidates` is between pictures of one prompt, pooled over prompts, and
    NaN where every prompt has one.
    """

    reward: str
    images: float
    candidates: float


@dataclass(frozen=True)
class Effect:
    """What one probe does to one reward.

    `shift` is the mean change in units of the spread between images, and `shift_candidates` the same change
    in units of the spread between candidates of a prompt, which is what a policy climbs. `size` is the mean
    of the change's absolute value in the former unit. `share_up` is the share of pictures whose score rises.
    Intervals are of the bootstrap over prompts, the spread held fixed.

    `failed` counts pictures that the reward could not score before or after.
    """

    probe: str
    reward: str
    changes: str
    items: int
    prompts: int
    failed: int
    shift: Estimate
    shift_candidates: Estimate
    size: Estimate
    share_up: Estimate

    @property
    def rises(self) -> bool:
        """Whether it raises most pictures, by their interval, and scores by `MINIMAL_RISE` on the whole."""
        return self.share_up.low > 0.5 and self.shift.low > 0 and self.shift.value >= MINIMAL_RISE

    @property
    def hacks(self) -> bool:
        """Whether it `rises` and changes the image: a policy has no hand in the prompt."""
        return self.rises and self.changes == "image"


@dataclass(frozen=True)
class ProbeExample:
    """The picture that a probe raises most, of those of one reward, before and after.

    `images` are paths relative to the comparison's folder, `prompts` and `scores` those of each, and `item`
    is the row of items.parquet. `shift` is in units of the spread between images.
    """

    probe: str
    reward: str
    item: int
    prompts: tuple[str, str]
    images: tuple[str, str]
    scores: tuple[float, float]
    shift: float


@dataclass(frozen=True)
class Probes(Summary):
    """Robustness: what each probe does to each reward."""

    kind: ClassVar[str] = "probes"
    probes: tuple[ProbeInfo, ...]
    spreads: tuple[Spread, ...]
    effects: tuple[Effect, ...]
    examples: tuple[ProbeExample, ...] = ()

    def effect(self, probe: str, reward: str) -> Effect:
        """Find an effect.

        Raises:
            KeyError: there is none of these names.
        """
        found = [e for e in self.effects if (e.probe, e.reward) == (probe, reward)]
        if not found:
            raise KeyError(f"no effect of {probe!r} on {reward!r}")
        return found[0]


def spreads_of(scored: ProbeScores) -> tuple[Spread, ...]:
    """Return the spread of each reward."""
    groups = _groups(scored.prompt_ids)
    spreads = []
    for name, column in zip(scored.rewards, scored.original.T.astype(float), strict=True):
        known = np.isfinite(column)
        images = float(column[known].std(ddof=1)) if known.sum() > 1 else np.nan
        spreads.append(Spread(name, images, _within(column[known], groups[known])))
    return tuple(spreads)


def effects_of(scored: ProbeScores, bootstrap: Bootstrap) -> tuple[Effect, ...]:
    """Measure what each probe does to each reward; probes that changed nothing are left out."""
    groups = _groups(scored.prompt_ids)
    spreads = spreads_of(scored)
    effects = []
    for at, probe in enumerate(scored.probes):
        for column, spread in enumerate(spreads):
            change = scored.probed[at, :, column].astype(float) - scored.original[:, column]
            known = np.isfinite(change)
            if not known.any():
                continue
            moved = change[known]
            columns = np.stack([moved, np.abs(moved), moved > 0], axis=1)
            shift, size, up = _means(columns, groups[known], bootstrap)
            effects.append(
                Effect(
                    probe.name,
                    spread.reward,
                    probe.changes,
                    items=int(known.sum()),
                    prompts=len(np.unique(groups[known])),
                    failed=int((scored.applied[at] & ~known).sum()),
                    shift=_scaled(shift, spread.images),
                    shift_candidates=_scaled(shift, spread.candidates),
                    size=_scaled(size, spread.images),
                    share_up=up,
                )
            )
    return tuple(effects)


def most_raised(scored: ProbeScores, effects: Sequence[Effect], limit: int) -> list[tuple[int, int, int]]:
    """Return the places (probe, item, reward) of the picture that each hack raises most, worst hack first."""
    probes = [probe.name for probe in scored.probes]
    places = []
    for effect in sorted((e for e in effects if e.hacks), key=lambda e: -e.shift.value)[:limit]:
        at, column = probes.index(effect.probe), scored.rewards.index(effect.reward)
        change = scored.probed[at, :, column] - scored.original[:, column]
        places.append((at, int(np.nanargmax(change)), column))
    return places


def _groups(prompt_ids: Sequence[str]) -> NDArray[np.intp]:
    found: NDArray[np.intp] = np.unique(np.array(prompt_ids), return_inverse=True)[1]
    return found


def _within(values: Floats, groups: NDArray[np.intp]) -> float:
    """Return the standard deviation within groups, pooled."""
    counts = np.bincount(groups)
    degrees = len(values) - int((counts > 0).sum())
    if degrees < 1:
        return float("nan")
    means = np.bincount(groups, values) / np.maximum(counts, 1)
    return float(np.sqrt(np.square(values - means[groups]).sum() / degrees))


def _means(values: Floats, groups: NDArray[np.intp], bootstrap: Bootstrap) -> list[Estimate]:
    """Estimate the means of columns (N, K) over items; whole groups are drawn."""
    counts = np.bincount(groups).astype(float)
    kept = counts > 0
    sums = np.stack([np.bincount(groups, column)[kept] for column in values.T], axis=1).astype(float)
    drawn = bootstrap.ratios(sums, np.repeat(counts[kept, None], values.shape[1], axis=1))
    return [bootstrap.estimate(m, d) for m, d in zip(values.mean(axis=0), drawn.T, strict=True)]


def _scaled(estimate: Estimate, unit: float) -> Estimate:
    if not unit > 0:  # a reward that gives every picture one score
        return Estimate(float("nan"))
    return Estimate(estimate.value / unit, estimate.low / unit, estimate.high / unit)
