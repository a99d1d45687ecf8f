"""The exact judge as a reward in this process: `lab:exact` and `lab:exact-share`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import rewardzoo
from rewardzoo.errors import ItemError
from rewardzoo.trainers.lab.verdict import Verdict, judge


@dataclass(frozen=True)
class Truth:
    """A score, with what was wrong: by category, and in words as `reason`."""

    value: float
    details: Mapping[str, Any] = field(default_factory=dict)


class ExactReward:
    """Scores a picture by what of its prompt it shows; a `Model` for `LocalRewards.of`.

    `lab:exact` is 1 where every statement holds, else 0; `lab:exact-share` is the share that holds. A prompt
    outside the lab's grammar is an error of its item.
    """

    _SCORES: ClassVar[Mapping[str, Callable[[Verdict], float]]] = {
        "lab:exact": lambda verdict: float(verdict.correct),
        "lab:exact-share": lambda verdict: verdict.score,
    }
    NAMES = tuple(_SCORES)

    def __init__(self, name: str) -> None:
        if name not in self._SCORES:
            raise ValueError(f"the lab has no reward {name!r}: there are {', '.join(self.NAMES)}")
        self.name = name

    def score_items(
        self,
        images: Sequence[NDArray[np.uint8]],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> list[Truth | ItemError]:
        """Judge pictures, uint8 (H, W, 3) each, by their prompts."""
        return [self._score(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def provenance(self) -> Mapping[str, Any]:
        """Say that nothing was learnt here."""
        return {"reward": self.name, "recipe": "exact judge", "package": rewardzoo.__version__}

    def _score(self, image: NDArray[np.uint8], prompt: str) -> Truth | ItemError:
        try:
            verdict = _verdict(image.tobytes(), image.shape, prompt)
        except ValueError as error:
            return ItemError(str(error))
        wrong = [statement for statement in verdict.statements if not statement.holds]
        return Truth(
            self._SCORES[self.name](verdict),
            {
                "categories": verdict.categories,
                "category": "+".join(dict.fromkeys(statement.category for statement in wrong)),
                "reason": ", ".join(f"not {statement.text}" for statement in wrong),
            },
        )


@lru_cache(maxsize=1024)  # the two rewards are asked one after the other
def _verdict(pixels: bytes, shape: tuple[int, ...], prompt: str) -> Verdict:
    return judge(np.frombuffer(pixels, np.uint8).reshape(shape), prompt)
