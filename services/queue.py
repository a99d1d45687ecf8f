"""Requests that wait, and the batches that are taken from them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rewardzoo.errors import ItemError
from rewardzoo.services.workers import Encoded

Scored = TypeVar("Scored")


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One pair to score: uint8 RGB pixels (H, W, 3) or an encoded image file, and its prompt."""

    image: NDArray[np.uint8] | bytes | Encoded
    prompt: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Request(Generic[Scored]):
    """What one caller asked for, and what came of it; `costs` has one number an item."""

    items: Sequence[Item]
    costs: Sequence[int]
    future: asyncio.Future[list[Scored | ItemError]]
    outcomes: list[Scored | ItemError | None] = field(init=False)
    arrived: float = field(default_factory=time.monotonic)
    context: Context = field(default_factory=copy_context)
    taken: int = 0
    scored: int = 0

    def __post_init__(self) -> None:
        self.outcomes = [None] * len(self.items)

    @property
    def waiting(self) -> int:
        """How many items have not been taken."""
        return len(self.items) - self.taken

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more: answered, out of time, or hung up."""
        return self.future.done()

    def put(self, index: int, outcome: Scored | ItemError) -> None:
        """Note what became of an item; the last one answers the caller."""
        self.outcomes[index] = outcome
        self.scored += 1
        if self.scored == len(self.items) and not self.gone:
            self.future.set_result([o for o in self.outcomes if o is not None])

    def fail(self, error: Exception) -> None:
        """Answer the caller with an error."""
        if not self.gone:
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False)
class Entry(Generic[Scored]):
    """One item of a request on its way."""

    request: Request[Scored]
    index: int

    @property
    def item(self) -> Item:
        """What is to be scored."""
        return self.request.items[self.index]

    @property
    def cost(self) -> int:
        """What it weighs in a batch."""
        return self.request.costs[self.index]

    def put(self, outcome: Scored | ItemError) -> None:
        """Note what became of it."""
        self.request.put(self.index, outcome)


class FairQueue(Generic[Scored]):
    """Requests in turn. `items` and `cost` are what waits in all."""

    def __init__(self) -> None:
        self._requests: deque[Request[Scored]] = deque()
        self.items = 0
        self.cost = 0

    def add(self, request: Request[Scored]) -> None:
        """Put a request at the end."""
        self._requests.append(request)
        self.items += len(request.items)
        self.cost += sum(request.costs)

    def remove(self, request: Request[Scored]) -> None:
        """Take away what of a request still waits."""
        if request.waiting:
            self._requests.remove(request)
            self.items -= request.waiting
            self.cost -= sum(request.costs[request.taken :])
            request.taken = len(request.items)

    def clear(self) -> list[Request[Scored]]:
        """Take away everything, and return whose it was."""
        requests = list(self._requests)
        for request in requests:
            self.remove(request)
        return requests

    def take(self, max_items: int, max_cost: int) -> list[Entry[Scored]]:
        """Take the next batch, an even share of each request's items; at least one item, if any waits."""
        batch: list[Entry[Scored]] = []
        cost = 0
        while self._requests and len(batch) < max_items:
            room = max_items - len(batch)
            share = max(1, room // len(self._requests))
            for _ in range(min(room, len(self._requests))):
                request = self._requests[0]
                for _ in range(min(share, request.waiting)):
                    entry = Entry(request, request.taken)
                    if batch and cost + entry.cost > max_cost:
                        if any(request is taken.request for taken in batch):
                            self._requests.rotate(-1)  # it had its share, others begin the next one
                        return batch
                    batch.append(entry)
                    cost += entry.cost
                    request.taken += 1
                    self.items -= 1
                    self.cost -= entry.cost
                self._requests.popleft()
                if request.waiting:
                    self._requests.append(request)
        return batch
