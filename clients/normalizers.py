"""What is done to a reward's raw scores before they are weighted and mixed.

A normaliser maps N scores to N numbers. NaN (a score that is missing) stays NaN and tells it nothing of
the others. `groups` says which items are alternatives of each other, as the samples of one prompt are.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Normalizer(Protocol):
    """Maps scores (N,) float64 to numbers (N,)."""

    def __call__(self, scores: Floats, groups: Sequence[Hashable]) -> Floats:
        """Normalise; one that learns from what it sees takes these in first."""

    def state_dict(self) -> dict[str, Any]:
        """Return what it has learnt, as JSON can hold it; empty where it learns nothing."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""


class _Stateless:
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} has no state, got {sorted(state)}: another mixture's?")


@dataclass(frozen=True)
class Affine(_Stateless):
    """`scale * score + offset`."""

    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, scores: Floats, groups: Sequence[Hashable]) -> Floats:
        """Scale and shift."""
        return self.scale * scores + self.offset


IDENTITY = Affine()
PRESETS: Mapping[str, Normalizer] = {
    "identity": IDENTITY,
    "flow_grpo/pickscore": Affine(1 / 26),
    "flow_grpo/unifiedreward": Affine(1 / 5),
    "unirl/pickscore": Affine(1 / 26),
    "unirl/clipscore": Affine(1 / 30),
}
"""Scalings that trainers apply to raw scores, as `TRAINER/REWARD`.

Source: flow_grpo's `pickscore_scorer.py` and `rewards.py`; UniRL's reward service. Its divisor 30 is for
CLIP's logits, 100 times the cosine.
"""


class RunningZ:
    """`(score - mean) / (std + eps)` over all scores seen, these included.

    `std` is that of the population. One mean of all that was ever seen, as rewards that drift up show it:
    a policy's progress stays visible.
    """

    def __init__(self, eps: float = 1e-4) -> None:
        self.eps = eps
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    @property
    def std(self) -> float:
        """Standard deviation of what was seen; 0 before there are two different scores."""
        return float(np.sqrt(self._squares / self.count)) if self.count else 0.0

    def __call__(self, scores: Floats, groups: Sequence[Hashable]) -> Floats:
        """Take the scores in, then normalise them."""
        seen = scores[np.isfinite(scores)]
        if seen.size:
            # Chan et al.'s update: stable where a sum of squares would cancel.
            total = self.count + seen.size
            delta = float(seen.mean()) - self.mean
            self._squares += float(((seen - seen.mean()) ** 2).sum())
            self._squares += delta**2 * self.count * seen.size / total
            self.mean += delta * seen.size / total
            self.count = total
        return (scores - self.mean) / (self.std + self.eps or 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return count, mean and sum of squared deviations."""
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.count = int(state["count"])
        self.mean, self._squares = float(state["mean"]), float(state["squares"])


@dataclass(frozen=True)
class GroupZ(_Stateless):
    """`(score - mean) / (std + eps)` within each group; 0 in a group of one.

    `std` is the unbiased one, as GRPO takes it. Normalising each reward so before they are summed is
    GDPO's way: no reward is drowned by another of wider spread.

    Source: GDPO (arXiv 2601.05242); TRL's `multi_objective_aggregation="normalize_then_sum"`.
    """

    eps: float = 1e-4

    def __call__(self, scores: Floats, groups: Sequence[Hashable]) -> Floats:
        """Normalise each group by itself."""
        if len(groups) != len(scores):
            raise ValueError(f"one group an item, got {len(scores)} scores and {len(groups)} groups")
        rows: dict[Hashable, list[int]] = {}
        for i in np.flatnonzero(np.isfinite(scores)).tolist():
            rows.setdefault(groups[i], []).append(i)
        found = np.full(len(scores), np.nan)
        for members in rows.values():
            values = scores[members]
            std = values.std(ddof=1) if len(members) > 1 else 0.0
            found[members] = (values - values.mean()) / (std + self.eps or 1.0)
        return found


class Percentile(_Stateless):
    """Where a score stands among those of a calibration set: the fraction below it, in [0, 1].

    Equal scores count by half. The set is stored with the mixture's state, so that it can be had from a
    checkpoint.
    """

    def __init__(self, calibration: ArrayLike) -> None:
        self._set(np.asarray(calibration, dtype=np.float64))

    def _set(self, calibration: Floats) -> None:
        if calibration.ndim != 1 or not calibration.size or not np.isfinite(calibration).all():
            raise ValueError("a calibration set is one or more finite scores (N,)")
        self._sorted = np.sort(calibration)

    def __call__(self, scores: Floats, groups: Sequence[Hashable]) -> Floats:
        """Look each score up."""
        below = np.searchsorted(self._sorted, scores, "left")
        upto = np.searchsorted(self._sorted, scores, "right")
        return np.where(np.isfinite(scores), (below + upto) / (2 * len(self._sorted)), np.nan)

    def state_dict(self) -> dict[str, Any]:
        """Return the calibration set."""
        return {"calibration": self._sorted.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Use another calibration set."""
        self._set(np.asarray(state["calibration"], dtype=np.float64))
