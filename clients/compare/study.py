"""A study of the shape of arXiv 2505.17017: DPO against GRPO, what scales, what a search saves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from rewardzoo.clients.compare.summaries import Estimate, Summary

SIGNIFICANT = 0.05
Verdict = Literal["agrees", "disagrees", "undecided"]


@dataclass(frozen=True)
class Recipe:
    """A reward, and in words how it was trained."""

    reward: str
    recipe: str


@dataclass(frozen=True)
class Versus:
    """DPO minus GRPO by the judge on one split, paired by seed: of one reward, or (`MEAN`) their mean.

    `relative` is the difference as a share of GRPO's mean. The interval is over seeds, and not narrower than
    the images of the evaluations allow; of one seed there is none.
    """

    reward: str
    split: str
    seeds: int
    difference: Estimate
    relative: float


@dataclass(frozen=True)
class ScalingPoint:
    """What runs with one `value` of an `axis` came to by the judge, all else but the axis the same.

    The interval of `final` is over seeds, and not narrower than the images of the evaluations allow, which of
    one seed is all there is; that of `gain` is over seeds alone.
    """

    axis: str
    value: int
    algorithm: str
    split: str
    seeds: int
    final: Estimate
    gain: Estimate


@dataclass(frozen=True)
class SearchPoint:
    """A search among n paths a prompt that gives some up early, against best-of-n by another critic.

    `right` is the judge's score of what the search chose, and `best_of_n` that of what best-of-n picks from
    the same n finished images. `drawn` is what the search draws for a prompt, in images; best-of-n reaches
    the search's score with `equal_n` images, and `saved` is 1 - drawn / equal_n. Where best-of-n never
    reaches it, `equal_n` is the most there are, and more is saved than it says: `capped`.
    """

    split: str
    n: int
    prompts: int
    right: Estimate
    best_of_n: Estimate
    drawn: Estimate
    equal_n: Estimate
    saved: Estimate
    capped: bool


@dataclass(frozen=True)
class Finding:
    """A claim, and the statistic that is above 0 where it holds; `measure` says what was computed.

    `p` is of the statistic being 0, NaN where the interval alone decides. `percent` says that it is a share.
    """

    claim: str
    measure: str
    estimate: Estimate
    p: float = math.nan
    percent: bool = False

    @property
    def verdict(self) -> Verdict:
        """What interval and p say; with 0 in the one or a p above 0.05, nothing is decided."""
        if self.p > SIGNIFICANT:
            return "undecided"
        if math.isfinite(self.estimate.low) and self.estimate.low > 0:
            return "agrees"
        if math.isfinite(self.estimate.high) and self.estimate.high < 0:
            return "disagrees"
        return "undecided"


MEAN = "mean of the rewards"


@dataclass(frozen=True)
class Study(Summary):
    """What a study found; `outcomes` and `pool` name the summaries that it rests on.

    `left_out` says what was not done, and why. `minutes` passed while anything ran, and `core_minutes` are
    those of all its processes together. `settings` are what the runs were told.
    """

    kind: ClassVar[str] = "study"
    judge: str
    outcomes: str
    pool: str
    recipes: tuple[Recipe, ...]
    findings: tuple[Finding, ...]
    versus: tuple[Versus, ...]
    scaling: tuple[ScalingPoint, ...]
    search: tuple[SearchPoint, ...]
    search_names: tuple[str, ...]
    left_out: tuple[str, ...]
    settings: Mapping[str, str]
    minutes: float
    core_minutes: float
