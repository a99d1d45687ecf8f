"""`LocalRewards`: the same `score` as `RewardClient`'s, in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rewardzoo.clients import wire
from rewardzoo.clients.images import Pixels, decode_image
from rewardzoo.clients.result import ScoreResult
from rewardzoo.clients.scorer import Images, Metadata, Scorer
from rewardzoo.clients.transport import Part, Reply
from rewardzoo.errors import ItemError, UnknownRewardError


class Scored(Protocol):
    """What is used of a `rewardzoo.rewards.Score`."""

    @property
    def value(self) -> float:
        """The score."""

    @property
    def details(self) -> Mapping[str, Any]:
        """What the reward says beside it."""


class Model(Protocol):
    """What is used of a `rewardzoo.rewards.RewardModel`."""

    @property
    def name(self) -> str:
        """The full name, `reward:variant`."""

    def score_items(
        self, images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Sequence[Scored | ItemError]:
        """Score pairs; an error stands in its item's place."""

    def provenance(self) -> Mapping[str, Any]:
        """Say what a score rests on."""


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
        super().__init__(_InProcess(models), timeout=float("inf"), max_in_flight=1)

    def _chosen(self, reward: str | None) -> str:
        if reward is not None:
            return reward
        if len(self._names) > 1:
            raise ValueError(f"several rewards are loaded, name one: {', '.join(self._names)}")
        return self._names[0]


class _InProcess:
    """The transport that calls the model."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = {**{model.name: model for model in models.values()}, **models}
        self._lock = threading.Lock()

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        if model not in self._models:
            loaded = ", ".join(self._models)
            raise UnknownRewardError(f"the reward {model!r} is not loaded here, there are: {loaded}")
        images: list[Pixels] = []
        metadata: list[Mapping[str, Any]] = []
        rows: list[int] = []
        errors: dict[int, str] = {}
        notes = part.metadata or [""] * len(part.payloads)
        for i, (payload, note) in enumerate(zip(part.payloads, notes, strict=True)):
            try:
                extra = wire.decode_object(note, wire.METADATA)
                images.append(decode_image(payload) if isinstance(payload, bytes) else payload)
            except ItemError as error:
                errors[i] = str(error)
            else:
                metadata.append(extra)
                rows.append(i)
        scores = [float("nan")] * len(part.payloads)
        details: dict[int, Mapping[str, Any]] = {}
        with self._lock:
            found = self._models[model].score_items(images, [part.prompts[i] for i in rows], metadata)
        for i, outcome in zip(rows, found, strict=True):
            try:
                if isinstance(outcome, ItemError):
                    raise outcome
                details[i] = wire.plain(outcome.details)
                scores[i] = outcome.value
            except ItemError as error:
                errors[i] = str(error)
        return Reply(scores, errors, self._models[model].provenance(), details)

    def close(self) -> None:
        self._models = {}
