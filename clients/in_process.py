"""The transport without a wire: a model in this process, for `LocalRewards` and for Triton's backend."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rewardzoo.clients import wire
from rewardzoo.clients.images import Pixels, decode_image
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


class InProcess:
    """The transport that calls models in this process, by their names or by the keys of `models`."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = {**{model.name: model for model in models.values()}, **models}
        self._lock = threading.Lock()

    def infer(self, model: str, part: Part, *, deadline: float = math.inf) -> Reply:
        """Score a part; see `Transport`. No clock stops a forward that has begun.

        What a model raises reaches the caller.
        """
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
        scores = [math.nan] * len(part.payloads)
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
        """Let go of the models."""
        self._models = {}
