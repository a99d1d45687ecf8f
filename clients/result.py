"""What a call to `score_result` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardzoo.errors import ItemError


@dataclass(frozen=True)
class ScoreResult:
    """Scores (N,) float32 in the reward's raw scale, in the order of the images.

    A score is NaN exactly where `errors`, by the item's index, says why. `provenance` is what the
    scores rest on (reward, weights, recipe, dtype, version); a value is a list where the servers
    that answered do not agree on it. `details` has one mapping an item, in the order of the images:
    what the reward says beside the score, empty where that is nothing or the item failed.

    Where several rewards were asked for, `parts` has the result of each by the name it was asked by,
    and `scores` is their mixture (N,), or their scores (N, R) side by side where they came as a list.
    `provenance` and the mappings of `details` are by that name then; an item's error is that of the
    rewards that count and failed.
    """

    scores: NDArray[np.float32]
    errors: Mapping[int, ItemError] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    details: Sequence[Mapping[str, Any]] = ()
    parts: Mapping[str, ScoreResult] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.details:
            object.__setattr__(self, "details", tuple({} for _ in self.scores))
