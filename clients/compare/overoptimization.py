"""An alarm for a training run: the own reward still rises while a held-out judge has peaked and falls.

Goodhart's curve as Gao et al. measured it (arXiv 2210.10760): what is optimised goes on rising, what is meant
turns round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_NORMAL = NormalDist()
_TINY = float(np.finfo(float).tiny)
_MAX_RHO = 0.9


@dataclass(frozen=True)
class Alarm:
    """What was seen at `step`: `judge` was best about `peak_step` and has fallen by `drop` since.

    `drop` is in units of the judge's score, by the fitted line. `z` is the line's slope over its standard
    error, and `own_z` the rise of the own reward's mean over that of the difference.
    """

    step: int
    judge: str
    peak_step: int
    drop: float
    z: float
    own_z: float

    def __str__(self) -> str:
        return (
            f"step {self.step}: {self.judge} has fallen by {self.drop:.4g} since its best about step "
            f"{self.peak_step} (z = {self.z:.1f}), while the own reward rises (z = {self.own_z:.1f}): "
            "go back to that step's checkpoint, or mix in another reward"
        )


@dataclass
class _Series:
    """One judge beside the own reward, in blocks: the mean of `block` values each."""

    steps: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    judge: list[float] = field(default_factory=list)
    open: list[tuple[float, float, float]] = field(default_factory=list)
    since: list[float] = field(default_factory=list)
    """Own rewards since the judge's last value, where it judges not every step."""
    held: int = 0
    """How many blocks in a row the rule has held."""
    told: bool = False


class OveroptimizationAlarm:
    """Fed step by step, says once a judge when the own reward rises and that judge falls.

        alarm = OveroptimizationAlarm(judges=["eval/out_of_domain/exact"])
        ...
        if found := alarm.update(step, metrics):
            logger.warning("%s", found)

    The rule, for each judge, at the end of each block of `block` values of it:

    1. Values are averaged in blocks. The peak is the judge's best block so far.
    2. At least `min_blocks` blocks lie behind the peak. A line is fitted to them, the peak not among them:
       it was chosen for being high, and what follows it would seem to fall.
    3. The judge falls: its line's slope is below zero by so many standard errors that one which only
       fluctuates does so with probability `alpha / J` (one-sided, J judges). The error's noise is the greater
       of the fit's residuals and of the differences between neighbouring blocks of all the run, and is
       enlarged where neighbouring residuals resemble each other.
    4. The own reward rises: behind the peak its mean is above the mean up to the peak, by a one-sided test at
       `own_alpha`, and its own line does not fall.
    5. This holds at `patience` blocks in a row.

    The fit is looked at again and again, so `alpha` is not the false-alarm rate of a run;
    docs/compare.md has the rates that were simulated.

    `own` is the metric that is trained on. `judges` are the held-out ones, by default every metric that
    starts with `judge/` or `eval/`. A judge that comes every k-th step only is set against the own reward's
    mean over the steps since.
    """

    def __init__(
        self,
        *,
        own: str = "reward",
        judges: Sequence[str] | None = None,
        block: int = 5,
        min_blocks: int = 6,
        patience: int = 2,
        alpha: float = 5e-4,
        own_alpha: float = 0.01,
    ) -> None:
        if isinstance(judges, str):
            raise ValueError(f"judges must be a list of metrics, got a string: use [{judges!r}]")
        if block < 1 or min_blocks < 4 or patience < 1:
            raise ValueError(
                f"block and patience must be >= 1 and min_blocks >= 4, got {block}, {patience}, {min_blocks}"
            )
        if not (0 < alpha < 0.5 and 0 < own_alpha < 0.5):
            raise ValueError(f"alpha and own_alpha must be in (0, 0.5), got {alpha} and {own_alpha}")
        self.own, self.judges = own, None if judges is None else tuple(judges)
        self.block, self.min_blocks, self.patience = block, min_blocks, patience
        self.alpha, self.own_alpha = alpha, own_alpha
        self.alarms: list[Alarm] = []
        self._series: dict[str, _Series] = {name: _Series() for name in self.judges or ()}

    def update(self, step: int, metrics: Mapping[str, Any]) -> Alarm | None:
        """Take in a step's metrics; return an alarm when one begins.

        Other metrics, missing ones and those that are no finite numbers are passed over. Where several
        judges fall at the same step, the steepest is returned; all are in `alarms`.
        """
        own = _number(metrics.get(self.own))
        begun = []
        for name in self._names(metrics):
            series = self._series.setdefault(name, _Series())
            if own is not None:
                series.since.append(own)
            judged = _number(metrics.get(name))
            if judged is None or not series.since:
                continue
            series.open.append((step, float(np.mean(series.since)), judged))
            series.since.clear()
            if len(series.open) == self.block:
                for values, mean in zip(
                    (series.steps, series.own, series.judge), np.mean(series.open, axis=0), strict=True
                ):
                    values.append(float(mean))
                series.open.clear()
                if alarm := self._look(step, name, series):
                    begun.append(alarm)
        self.alarms += begun
        return min(begun, key=lambda alarm: alarm.z) if begun else None

    def state_dict(self) -> dict[str, Any]:
        """Return what it has seen, as JSON can hold it, for the trainer's checkpoint."""
        return {
            "series": {name: asdict(series) for name, series in self._series.items()},
            "alarms": [asdict(alarm) for alarm in self.alarms],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._series = {name: _Series(**series) for name, series in state["series"].items()}
        self.alarms = [Alarm(**alarm) for alarm in state["alarms"]]

    def _names(self, metrics: Mapping[str, Any]) -> list[str]:
        if self.judges is not None:
            return list(self.judges)
        found = (name for name in metrics if name.startswith(("judge/", "eval/")))
        return list(dict.fromkeys([*self._series, *found]))

    def _look(self, step: int, name: str, series: _Series) -> Alarm | None:
        judge = np.array(series.judge)
        peak = int(judge.argmax())
        behind = slice(peak + 1, None)
        if len(judge[behind]) < self.min_blocks:
            series.held = 0
            return None
        steps, own = np.array(series.steps)[behind], np.array(series.own)
        fall, z = _fall(steps, judge[behind], _rough(judge))
        own_z = _gain(own[: peak + 1], own[behind], _rough(own))
        own_trend = _fall(steps, own[behind], _rough(own))[1]
        limit, own_limit = _NORMAL.inv_cdf(self.alpha / len(self._series)), _NORMAL.inv_cdf(self.own_alpha)
        holds = z < limit and own_z > -own_limit and own_trend >= 0
        series.held = series.held + 1 if holds else 0
        if series.told or series.held < self.patience:
            return None
        series.told = True
        return Alarm(step, name, round(series.steps[peak]), -fall, z, own_z)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _fall(x: Floats, y: Floats, noise: float) -> tuple[float, float]:
    """Fit a line to y (n,): its rise from end to end, and its slope over the slope's standard error."""
    u, v = x - x.mean(), y - y.mean()
    slope = float(u @ v / (u @ u))
    residuals = v - slope * u
    noise = max(float(residuals @ residuals) / (len(y) - 2), noise, _TINY)
    # Neighbours that resemble each other say less than as many that do not. An estimate of their correlation
    # that is taken off a fitted line is too low (Marriott and Pope 1954, Kendall 1954).
    lag = float(residuals[1:] @ residuals[:-1] / max(float(residuals @ residuals), _TINY))
    rho = min(max((lag + 1 / len(y)) / max(1 - 4 / len(y), 0.2), 0.0), _MAX_RHO)
    error = math.sqrt(noise * (1 + rho) / (1 - rho) / (u @ u))
    return slope * float(x[-1] - x[0]), slope / error


def _gain(before: Floats, after: Floats, noise: float) -> float:
    """Return by how many of its standard errors the mean has risen."""
    error = math.sqrt(max(noise, _TINY) * (1 / len(before) + 1 / len(after)))
    return float(after.mean() - before.mean()) / error


def _rough(y: Floats) -> float:
    """Return the variance of the noise on whatever slow curve: half the mean square of differences."""
    return float(np.square(np.diff(y)).mean() / 2)
