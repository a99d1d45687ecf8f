"""What stands between planning a call and the model: one method, so that tests need no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rewardzoo.clients.images import Payload


@dataclass(frozen=True)
class Part:
    """Items that travel together: all encoded files, or all pixels of one shape.

    `rows` are their indices in the call, `metadata` one JSON text an item.
    """

    rows: Sequence[int]
    payloads: Sequence[Payload]
    prompts: Sequence[str]
    metadata: Sequence[str | bytes] | None = None


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
    """A way to have a part scored. Thread-safe."""

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        """Score `part` with `model` before `deadline`, in seconds of `time.monotonic()`.

        Raises:
            RewardZooError: the part as a whole could not be scored.
        """

    def close(self) -> None:
        """Free what is held. The transport is not used afterwards."""
