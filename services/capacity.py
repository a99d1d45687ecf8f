"""How much may wait, and how much one batch may hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rewardzoo.errors import OverloadedError

logger = logging.getLogger(__name__)
_PATIENCE, _MOST_PATIENCE = 64, 4096


class Admission:
    """The bytes of all requests that are being read or scored, at most `room` of them.

    A request larger than the room is let in where there is no other.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.held = 0

    @contextmanager
    def enter(self) -> Iterator[Callable[[int], None]]:
        """Give a function that takes so many bytes more for this request; all are given back at its end.

        It raises `OverloadedError` where they do not fit.
        """
        mine = 0

        def hold(size: int) -> None:
            nonlocal mine
            others = self.held - mine
            if others and self.held + size > self.room:
                raise OverloadedError(
                    f"{others:,} bytes of requests are here already and {mine + size:,} more would exceed "
                    f"{self.room:,}: repeat later, send fewer at once, or raise max_queue_mb",
                    retry_after=1,
                )
            mine += size
            self.held += size

        try:
            yield hold
        finally:
            self.held -= mine


class BatchLimit:
    """What one batch may cost. It is halved when the device runs out of memory, and grows back slowly."""

    def __init__(self, name: str, cost: int) -> None:
        self.name, self.most = name, cost
        self.cost = cost
        self._patience = _PATIENCE
        self._good = 0

    def shrink(self, cost: int) -> None:
        """A batch of that cost was too much."""
        safe = max(1, min(self.cost, cost // 2))
        # Each time it takes longer until more is tried: a trial that fails costs a batch's time.
        self._patience = min(_MOST_PATIENCE, self._patience * 2)
        self._good = 0
        if safe < self.cost:
            logger.warning(
                "%s: no memory for a batch of cost %d, the limit is now %d of %d",
                self.name, cost, safe, self.most,
            )  # fmt: skip
            self.cost = safe

    def passed(self) -> None:
        """A batch went well."""
        self._good += 1
        if self.cost < self.most and self._good >= self._patience:
            self.cost = min(self.most, self.cost + max(1, self.cost // 8))
            self._good = 0
