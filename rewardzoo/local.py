"""`LocalRewards`: the same `score` as `RewardClient`'s, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from rewardzoo.clients.in_process import InProcess, Model
from rewardzoo.clients.result import ScoreResult
from rewardzoo.clients.scorer import Images, Metadata, Scorer


class LocalRewards(Scorer):
    """Scores images with rewards loaded here, by the code and in the batches of a server.

        scores = LocalRewards(["hpsv2:mini"]).score(images, prompts)

    `weights` maps a name of `rewards` to a file to use instead of the published one.

    Raises:
        UnknownRewardError, WeightsError: a reward cannot be loaded.
        MissingExtraError: torch is not installed.
    """

    def __init__(
        self,
        rewards: Sequence[str],
        *,
        device: str = "auto",
        weights: Mapping[str, str | Path] | None = None,
    ) -> None:
        if isinstance(rewards, str):
            raise ValueError(f"rewards must be a list of names, got a string: use [{rewards!r}]")
        weights = weights or {}
        if strange := sorted(set(weights) - set(rewards)):
            raise ValueError(f"weights are given for {strange}, which are not among {rewards}")
        from rewardzoo.rewards import load

        self._start({n: load(n, device=device, weights=weights.get(n)) for n in rewards})

    @classmethod
    def of(cls, models: Iterable[Model]) -> Self:
        """Score with models that are already loaded."""
        self = cls.__new__(cls)
        self._start({model.name: model for model in models})
        return self

    def score(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: str | None = None,
        metadata: Metadata | None = None,
        on_error: Literal["raise", "nan"] = "raise",
    ) -> NDArray[np.float32]:
        """Score as `Scorer.score`; `reward` may be left out when only one is loaded."""
        reward = self._chosen(reward)
        return super().score(images, prompts, reward=reward, metadata=metadata, on_error=on_error)

    def score_result(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: str | None = None,
        metadata: Metadata | None = None,
    ) -> ScoreResult:
        """Score as `Scorer.score_result`; `reward` may be left out when only one is loaded."""
        return super().score_result(images, prompts, reward=self._chosen(reward), metadata=metadata)

    def _start(self, models: Mapping[str, Model]) -> None:
        if not models:
            raise ValueError("no rewards given: name at least one, e.g. ['hpsv2:mini']")
        self._names = tuple(models)
        # A model runs one part at a time, and no clock stops a forward that has begun.
        super().__init__(InProcess(models), timeout=float("inf"), max_in_flight=1)

    def _chosen(self, reward: str | None) -> str:
        if reward is not None:
            return reward
        if len(self._names) > 1:
            raise ValueError(f"several rewards are loaded, name one: {', '.join(self._names)}")
        return self._names[0]
