"""What stands between planning a call and the model: one method, so that tests need no network."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rewardzoo.clients.images import Payload


@dataclass(frozen=True)
class Part:
    """Items that travel together: all encoded files, or all pixels of one shape.

    `metadata` is one JSON text an item. `id` names the part in the logs of both sides; it is the same in
    every repetition, on whatever replica.
    """

    payloads: Sequence[Payload]
    prompts: Sequence[str]
    metadata: Sequence[str | bytes] | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __len__(self) -> int:
        return len(self.payloads)

    def take(self, places: Sequence[int]) -> Part:
        """Return the items at `places`, one or more, as a part of their own, whose id tells of this one's."""
        if len(places) == len(self):
            return self
        return Part(
            [self.payloads[i] for i in places],
            [self.prompts[i] for i in places],
            None if self.metadata is None else [self.metadata[i] for i in places],
            f"{self.id}.{places[0]}",
        )


@dataclass(frozen=True)
class Reply:
    """Scores of a part in its order, NaN where `errors`, by place in the part, says why.

    `details` are by place in the part too; an item that has none is left out.
    """

    scores: Sequence[float]
    errors: Mapping[int, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


def joined(replies: Sequence[Reply]) -> Reply:
    """Return the reply to consecutive parts as one."""
    if len(replies) == 1:
        return replies[0]
    scores: list[float] = []
    errors: dict[int, str] = {}
    provenance: dict[str, Any] = {}
    details: dict[int, Mapping[str, Any]] = {}
    for reply in replies:
        errors.update((len(scores) + i, text) for i, text in reply.errors.items())
        details.update((len(scores) + i, said) for i, said in reply.details.items())
        provenance.update(reply.provenance)
        scores += reply.scores
    return Reply(scores, errors, provenance, details)


class Transport(Protocol):
    """A way to have a part scored. Thread-safe.

    One that talks to a server tries once; `rewardzoo.clients.pool` repeats what may be repeated.
    """

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        """Score `part` with `model` before `deadline`, in seconds of `time.monotonic()`.

        Raises:
            RewardZooError: the part as a whole could not be scored.
        """

    def infer_all(self, models: Sequence[str], part: Part, *, deadline: float) -> Sequence[Reply]:
        """Score `part` with each of `models`; override it where the images can travel once for all.

        Raises:
            RewardZooError: as `infer`.
        """
        return [self.infer(model, part, deadline=deadline) for model in models]

    def close(self) -> None:
        """Free what is held. The transport is not used afterwards."""
