"""The transport without a wire: a model in this process, for `LocalRewards` and for Triton's backend."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rewardzoo.clients import wire
from rewardzoo.clients.images import Pixels, decode_image
from rewardzoo.clients.transport import Part, Reply, Transport
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


class InProcess(Transport):
    """The transport that calls models in this process, by their names or by the keys of `models`."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = {**{model.name: model for model in models.values()}, **models}
        self._lock = threading.Lock()

    def infer(self, model: str, part: Part, *, deadline: float = math.inf) -> Reply:
        """Score a part; see `Transport`. No clock stops a forward that has begun.

        What a model raises reaches the caller.
        """
        return self.infer_all([model], part, deadline=deadline)[0]

    def infer_all(self, models: Sequence[str], part: Part, *, deadline: float = math.inf) -> Sequence[Reply]:
        """Score a part with each of `models`; files are decoded once."""
        chosen = [self._find(name) for name in models]
        images: list[Pixels] = []
        metadata: list[Mapping[str, Any]] = []
        rows: list[int] = []
        errors: dict[int, str] = {}
        notes = part.metadata or [""] * len(part)
        for i, (payload, note) in enumerate(zip(part.payloads, notes, strict=True)):
            try:
                extra = wire.decode_object(note, wire.METADATA)
                images.append(decode_image(payload) if isinstance(payload, bytes) else payload)
            except ItemError as error:
                errors[i] = str(error)
            else:
                metadata.append(extra)
                rows.append(i)
        prompts = [part.prompts[i] for i in rows]
        replies = []
        for model in chosen:
            with self._lock:
                found = model.score_items(images, prompts, metadata)
            replies.append(_reply(model, len(part), dict(zip(rows, found, strict=True)), errors))
        return replies

    def close(self) -> None:
        """Let go of the models."""
        self._models = {}

    def _find(self, name: str) -> Model:
        if name not in self._models:
            loaded = ", ".join(self._models)
            raise UnknownRewardError(f"the reward {name!r} is not loaded here, there are: {loaded}")
        return self._models[name]


def _reply(
    model: Model, count: int, found: Mapping[int, Scored | ItemError], failed: Mapping[int, str]
) -> Reply:
    scores = [math.nan] * count
    errors = dict(failed)
    details: dict[int, Mapping[str, Any]] = {}
    for i, outcome in found.items():
        try:
            if isinstance(outcome, ItemError):
                raise outcome
            details[i] = wire.plain(outcome.details)
            scores[i] = outcome.value
        except ItemError as error:
            errors[i] = str(error)
    return Reply(scores, errors, model.provenance(), details)
