"""From scored candidates to preference pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

PairMode = Literal["best_worst", "topk_bottomk", "random_yes_no"]
Skip = Literal["failed", "tie", "low_std", "small_gap", "one_sided"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """M pairs: `chosen` and `rejected` are candidates of `prompt`, int64 (M,); `gap` float64 (M,) apart.

    `skipped` counts the prompts that gave no pair: `failed`, fewer than two candidates were scored; `tie`,
    all scored alike; `low_std`, their standard deviation is below `min_std`; `small_gap`, none are `min_gap`
    apart; `one_sided`, all are yes or all are no.
    """

    prompt: NDArray[np.int64]
    chosen: NDArray[np.int64]
    rejected: NDArray[np.int64]
    gap: NDArray[np.float64]
    skipped: Mapping[Skip, int]

    def __len__(self) -> int:
        return len(self.prompt)


def make_pairs(
    scores: ArrayLike,
    mode: PairMode = "best_worst",
    *,
    rng: np.random.Generator,
    per_prompt: int = 1,
    threshold: float = 0.5,
    min_gap: float = 0.0,
    min_std: float = 0.0,
) -> Pairs:
    """Pair the K candidates of each of P prompts by their scores (P, K), NaN where there is none.

    - `best_worst`: the best with the worst;
    - `topk_bottomk`: the best with the worst, the second best with the second worst, and so on;
    - `random_yes_no`: one that a judge says yes to (score >= `threshold`) with one it says no to, drawn from
      all such (PARM, arXiv 2501.13926).

    A prompt gives up to `per_prompt` pairs, and no candidate is in two. The two of a pair
    never score alike, and are at least `min_gap` apart; `min_std` is of a prompt's scores, unbiased. Chance
    alone, never the order of the candidates, decides between equal scores; the same generator gives the same
    pairs.

    Raises:
        ValueError: scores are not (P, K) or one is infinite; or an unknown mode or a setting out of range.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"scores must be (prompts, candidates), got {table.shape}")
    if np.isinf(table).any():
        raise ValueError("a score is infinite: give NaN for a candidate that has none")
    if mode not in ("best_worst", "topk_bottomk", "random_yes_no"):
        raise ValueError(f"mode must be best_worst, topk_bottomk or random_yes_no; got {mode!r}")
    most = 1 if mode == "best_worst" else table.shape[1] // 2
    if not 1 <= per_prompt <= max(most, 1):
        raise ValueError(f"{mode} gives 1 to {most} pairs of {table.shape[1]} candidates, got {per_prompt=}")
    if min_gap < 0 or min_std < 0:
        raise ValueError(f"min_gap and min_std must be >= 0, got {min_gap} and {min_std}")

    lots = rng.random(table.shape)
    skipped: Counter[Skip] = Counter()
    rows: list[tuple[int, int, int, float]] = []
    for prompt, values in enumerate(table):
        scored = np.flatnonzero(~np.isnan(values))
        reason = _unusable(values[scored], min_std)
        if reason is None:
            # By score, and by lot where scores are equal.
            order = scored[np.lexsort((lots[prompt, scored], values[scored]))]
            if mode == "random_yes_no":
                drawn = scored[np.argsort(lots[prompt, scored])]
                yes, no = drawn[values[drawn] >= threshold], drawn[values[drawn] < threshold]
            else:
                half = len(order) // 2
                yes, no = order[::-1][:half], order[:half]
            found = [(int(c), int(r)) for c, r in zip(yes, no, strict=False)]
            apart = [(c, r, gap) for c, r in found if (gap := values[c] - values[r]) > 0 and gap >= min_gap]
            rows += [(prompt, c, r, float(gap)) for c, r, gap in apart[:per_prompt]]
            if not apart:
                reason = "small_gap" if found else "one_sided"
        if reason is not None:
            skipped[reason] += 1
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    prompts, chosen, rejected = columns[:3].astype(np.int64)
    return Pairs(prompts, chosen, rejected, columns[3], dict(skipped))


def _unusable(scores: NDArray[np.float64], min_std: float) -> Skip | None:
    """Say why no pair can come of these scores, if none can."""
    if len(scores) < 2:
        return "failed"
    if scores.min() == scores.max():
        return "tie"
    if scores.std(ddof=1) < min_std:
        return "low_std"
    return None
