"""Several rewards as one: normalised, weighted, and reduced to a total, with the parts kept beside it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewardzoo.clients.normalizers import IDENTITY, PRESETS, Floats, Normalizer
from rewardzoo.clients.process import PerProcess
from rewardzoo.clients.result import ScoreResult
from rewardzoo.errors import ItemError

Reduction = Literal["sum", "mean", "min", "lower-confidence"]


class Mixture:
    """A total of R rewards: `reduce` over `weight * normaliser(score)`.

        mixture = Mixture(
            {"pickscore": 1.0, "imagereward:v1.0": 0.5},
            normalize={"pickscore": "flow_grpo/pickscore", "imagereward:v1.0": RunningZ()},
            held_out=["hpsv2:v2.1"],
        )
        total = client.score(images, prompts, reward=mixture)

    `normalize` is one for all or one a reward, an object or a name of `PRESETS`; without it scores stay
    raw. A weight may be negative, where lower is better. `reduce` is

    - `sum`, or `mean`, of the R terms;
    - `min`: the worst of them, so that no term can be won at the cost of another;
    - `lower-confidence`: their mean less `confidence` times their standard deviation, for ensembles of
      rewards that are to agree.

    `held_out` are judges: rewards that are scored and kept beside the others, and that can never enter
    the total.

    An item one of whose counted rewards failed has the total NaN. Thread-safe; pickled with its state.

    Source: min and lower-confidence are the worst-case and the uncertainty-weighted optimisation of
    Coste et al. (arXiv 2310.02743), with the standard deviation in place of the variance.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        normalize: Mapping[str, Normalizer | str] | Normalizer | str = IDENTITY,
        reduce: Reduction = "sum",
        confidence: float = 1.0,
        held_out: Sequence[str] = (),
    ) -> None:
        if isinstance(held_out, str):
            raise ValueError(f"held_out must be a list of names, got a string: use [{held_out!r}]")
        if reduce not in _REDUCE:
            raise ValueError(f"reduce must be one of {', '.join(_REDUCE)}; got {reduce!r}")
        self.weights = {name: float(weight) for name, weight in weights.items()}
        self.held_out = tuple(held_out)
        self.reduce: Reduction = reduce
        self.confidence = confidence
        _check_names(self.weights, self.held_out)
        self.normalizers = _normalizers(normalize, list(self.weights))
        self._lock = PerProcess(threading.Lock)

    @property
    def rewards(self) -> tuple[str, ...]:
        """What must be scored: the counted rewards and the judges."""
        return (*self.weights, *self.held_out)

    def terms(
        self, scores: Mapping[str, ArrayLike], groups: Sequence[Hashable] | None = None
    ) -> dict[str, Floats]:
        """Return the weighted, normalised scores (N,) of each counted reward; see `total`."""
        names = list(self.weights)
        if missing := [name for name in names if name not in scores]:
            raise ValueError(f"no scores of {', '.join(missing)}; got those of {', '.join(scores)}")
        raw = {name: np.asarray(scores[name], dtype=np.float64) for name in names}
        shapes = {values.shape for values in raw.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"scores must all be (N,), got {sorted(shapes)}")
        (count,) = next(iter(shapes))
        groups = [None] * count if groups is None else groups
        if len(groups) != count:
            raise ValueError(f"one group an item, got {count} scores and {len(groups)} groups")
        with self._lock():
            return {n: self.weights[n] * self.normalizers[n](raw[n], groups) for n in names}

    def total(
        self, scores: Mapping[str, ArrayLike], groups: Sequence[Hashable] | None = None
    ) -> NDArray[np.float32]:
        """Mix raw scores by reward, each (N,), to totals (N,) float32; NaN where a counted one is missing.

        `groups` names each item's group, for normalisers that look at groups; all are one without it.
        Running normalisers learn from each call. What is held out is not looked at.

        Raises:
            ValueError: a counted reward is missing, or lengths differ.
        """
        return self._reduced(self.terms(scores, groups))

    def combine(self, parts: Mapping[str, ScoreResult], groups: Sequence[Hashable]) -> ScoreResult:
        """Mix results by reward to one that keeps them as its `parts`."""
        errors = gather_errors({name: parts[name] for name in self.weights})
        total = self.total({name: part.scores for name, part in parts.items()}, groups)
        return joined(parts, total, errors)

    def state_dict(self) -> dict[str, Any]:
        """Return what the normalisers have learnt, by reward; plain JSON, for a training checkpoint."""
        with self._lock():
            return {name: normalizer.state_dict() for name, normalizer in self.normalizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            ValueError: it is of a mixture of other rewards or normalisers.
        """
        if set(state) != set(self.weights):
            raise ValueError(f"the state is of {sorted(state)}, this mixture is of {sorted(self.weights)}")
        with self._lock():
            for name, normalizer in self.normalizers.items():
                normalizer.load_state_dict(state[name])

    def _reduced(self, terms: Mapping[str, Floats]) -> NDArray[np.float32]:
        return _REDUCE[self.reduce](np.stack(list(terms.values())), self.confidence).astype(np.float32)


def side_by_side(parts: Mapping[str, ScoreResult]) -> ScoreResult:
    """Return results by reward as one whose scores are (N, R)."""
    scores = np.stack([part.scores for part in parts.values()], axis=1)
    return joined(parts, scores, gather_errors(parts))


def joined(
    parts: Mapping[str, ScoreResult], scores: NDArray[np.float32], errors: Mapping[int, ItemError]
) -> ScoreResult:
    """Return a result that has others as its parts."""
    details = [{n: dict(p.details[i]) for n, p in parts.items() if p.details[i]} for i in range(len(scores))]
    provenance = {name: part.provenance for name, part in parts.items()}
    return ScoreResult(scores, errors, provenance, tuple(details), dict(parts))


def gather_errors(parts: Mapping[str, ScoreResult]) -> dict[int, ItemError]:
    """Return, by item, what failed in any of `parts`; an error that all share is said once."""
    found: dict[int, dict[str, str]] = {}
    for name, part in parts.items():
        for i, error in part.errors.items():
            found.setdefault(i, {})[name] = str(error)
    errors = {}
    for i, texts in sorted(found.items()):
        same = len(texts) == len(parts) and len(set(texts.values())) == 1
        text = next(iter(texts.values())) if same else "; ".join(f"{n}: {t}" for n, t in texts.items())
        errors[i] = ItemError(text)
    return errors


_REDUCE: Mapping[str, Callable[[Floats, float], Floats]] = {
    "sum": lambda terms, _: terms.sum(axis=0),
    "mean": lambda terms, _: terms.mean(axis=0),
    "min": lambda terms, _: terms.min(axis=0),
    "lower-confidence": lambda terms, k: terms.mean(axis=0) - k * terms.std(axis=0),
}


def _check_names(weights: Mapping[str, float], held_out: Sequence[str]) -> None:
    if not weights:
        raise ValueError("a mixture needs at least one reward that counts")
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight == 0:
            raise ValueError(
                f"the weight of {name} is {weight}: give a finite one other than 0, or hold it out"
            )
    for judge in held_out:
        family, _, variant = judge.partition(":")
        for name in weights:
            other, _, counted = name.partition(":")
            # A bare name may mean the very variant that the other names.
            if family == other and (variant == counted or not variant or not counted):
                raise ValueError(f"{judge} is held out and cannot count too, as {name}; name other variants")
    if len(set(held_out)) != len(held_out):
        raise ValueError(f"held_out names a judge twice: {', '.join(held_out)}")


def _normalizers(
    given: Mapping[str, Normalizer | str] | Normalizer | str, names: Sequence[str]
) -> dict[str, Normalizer]:
    if not isinstance(given, Mapping):
        given = dict.fromkeys(names, given)
    if strange := sorted(set(given) - set(names)):
        raise ValueError(f"normalize names {', '.join(strange)}, which do not count; {', '.join(names)} do")
    found = {name: _normalizer(given.get(name, IDENTITY)) for name in names}
    learning = [id(normalizer) for normalizer in found.values() if normalizer.state_dict()]
    if len(set(learning)) != len(learning):
        raise ValueError("a normaliser that knows one reward's scores cannot serve another: give one each")
    return found


def _normalizer(given: Normalizer | str) -> Normalizer:
    if not isinstance(given, str):
        return given
    if given not in PRESETS:
        raise ValueError(f"no normaliser {given!r}: there are {', '.join(PRESETS)}")
    return PRESETS[given]
