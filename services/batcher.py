"""Requests in, full batches to the device, scores back to whoever asked."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rewardzoo.errors import DeadlineError, ItemError, OverloadedError, UnavailableError

logger = logging.getLogger(__name__)

Prepared = TypeVar("Prepared")
Scored = TypeVar("Scored")
# One batch on the device and one prepared behind it: more would only take items from the queue,
# where they can still be merged, dropped and counted.
_AHEAD = 2


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One pair to score: uint8 RGB pixels (H, W, 3) or an encoded image file, and its prompt."""

    image: NDArray[np.uint8] | bytes
    prompt: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Request(Generic[Scored]):
    items: Sequence[Item]
    outcomes: list[Scored | ItemError | None]
    future: asyncio.Future[list[Scored | ItemError]]
    taken: int = 0
    scored: int = 0

    @property
    def waiting(self) -> int:
        return len(self.items) - self.taken

    @property
    def gone(self) -> bool:
        return self.future.done()

    def put(self, index: int, outcome: Scored | ItemError) -> None:
        self.outcomes[index] = outcome
        self.scored += 1
        if self.scored == len(self.items) and not self.gone:
            self.future.set_result([o for o in self.outcomes if o is not None])

    def fail(self, error: Exception) -> None:
        if not self.gone:
            self.future.set_exception(error)


class Batcher(Generic[Prepared, Scored]):
    """Merges small requests into batches of at most `max_batch` items and splits large ones.

    `prepare` turns items into a batch on the CPU, in a small thread pool; `run` scores one, always
    in the same thread, and gives one outcome an item: what it scored, whatever that is, or an
    `ItemError`. A full batch is prepared while the one before
    it runs; one that is not full keeps collecting until the device is free, and then `window`
    seconds more. Requests share each batch evenly, so a small one never waits for a large one to
    end. A request of up to `max_batch` items that meets no other is one batch, in its own order.

    When a stage raises, the batch is halved until the item at fault is alone: the exception becomes
    that item's `ItemError`, and its neighbours are scored. An `UnavailableError` says that not an
    item is at fault but the device: it fails all requests there are, and every later one.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence[Item]], Prepared],
        run: Callable[[Prepared], list[Scored | ItemError]],
        *,
        max_batch: int,
        window: float = 0.002,
        max_queue: int = 8192,
    ) -> None:
        self.prepare, self.run = prepare, run
        self.max_batch, self.window, self.max_queue = max_batch, window, max_queue
        self.failure: UnavailableError | None = UnavailableError("the batcher is not started")
        self._queue: deque[_Request[Scored]] = deque()
        self._queued = 0
        self._pace = 0.0
        self._changed = asyncio.Event()
        self._active: set[asyncio.Task[None]] = set()
        self._composer: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many items are not on their way to the device yet."""
        return self._queued

    def start(self) -> None:
        """Begin to serve; needs a running event loop."""
        self._preparers = ThreadPoolExecutor(_AHEAD, thread_name_prefix="prepare")
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self.failure = None
        self._composer = asyncio.create_task(self._compose())

    async def stop(self) -> None:
        """End: batches on their way to the device finish, what still waits is refused."""
        if self._composer is None:
            return
        self.failure = UnavailableError("the server is stopping")
        self._composer.cancel()
        with suppress(asyncio.CancelledError):
            await self._composer
        for request in list(self._queue):
            request.fail(self.failure)
        await asyncio.gather(*self._active)
        self._preparers.shutdown()
        self._device.shutdown()
        self._composer = None

    async def submit(self, items: Sequence[Item], timeout: float) -> list[Scored | ItemError]:
        """Score `items`, one outcome each, in their order.

        Cancelling the call drops what of it has not been started.

        Raises:
            OverloadedError: too many items wait already. A request larger than the whole queue is
                taken when nothing waits.
            DeadlineError: no scores within `timeout` seconds.
            UnavailableError: not started, stopping, or the device is lost.
        """
        if self.failure is not None:
            raise self.failure
        if not items:
            return []
        if self._queued and self._queued + len(items) > self.max_queue:
            raise OverloadedError(
                f"{self._queued} items wait and {len(items)} more would exceed {self.max_queue}: "
                "repeat later, send fewer at once, or raise max_queue",
                retry_after=math.ceil(min(60.0, max(1.0, self._queued * self._pace))),
            )
        future: asyncio.Future[list[Scored | ItemError]] = asyncio.get_running_loop().create_future()
        request: _Request[Scored] = _Request(items, [None] * len(items), future)
        self._queue.append(request)
        self._queued += len(items)
        self._changed.set()
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise DeadlineError(
                f"{request.scored} of {len(items)} items were scored when the time was up: "
                "send fewer at once or allow more time"
            ) from None
        finally:
            if request.waiting:
                self._queue.remove(request)
                self._queued -= request.waiting

    async def _compose(self) -> None:
        while True:
            while not (self._queued and self._has_room()):
                await self._change()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.window):
                    while self._queued < self.max_batch:
                        await self._change()
            if batch := self._take():
                task = asyncio.create_task(self._score(batch))
                self._active.add(task)
                task.add_done_callback(self._finished)

    def _has_room(self) -> bool:
        full = self._queued >= self.max_batch
        return len(self._active) < (_AHEAD if full else 1)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._active.discard(task)
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _take(self) -> list[tuple[_Request[Scored], int]]:
        """Take the next batch from the queue, an even share of each request's items."""
        batch: list[tuple[_Request[Scored], int]] = []
        while self._queue and (room := self.max_batch - len(batch)):
            share = max(1, room // len(self._queue))
            for _ in range(min(room, len(self._queue))):
                request = self._queue.popleft()
                start = request.taken
                request.taken += min(share, request.waiting)
                batch += [(request, i) for i in range(start, request.taken)]
                if request.waiting:
                    self._queue.append(request)
        self._queued -= len(batch)
        return batch

    async def _score(self, batch: list[tuple[_Request[Scored], int]]) -> None:
        started = time.monotonic()
        requests = {request for request, _ in batch}
        try:
            outcomes = await self._stages([r.items[i] for r, i in batch], requests)
        except UnavailableError as error:
            self.failure = error
            for request in requests.union(self._queue):
                request.fail(error)
            return
        for (request, i), outcome in zip(batch, outcomes, strict=True):
            request.put(i, outcome)
        self._pace = (time.monotonic() - started) / len(batch)

    async def _stages(
        self, items: Sequence[Item], requests: set[_Request[Scored]]
    ) -> list[Scored | ItemError]:
        loop = asyncio.get_running_loop()
        try:
            prepared = await loop.run_in_executor(self._preparers, self.prepare, items)
            outcomes = await loop.run_in_executor(self._device, self._run_wanted, prepared, requests)
            if outcomes is None:
                return [ItemError("its caller is gone")] * len(items)
            if len(outcomes) != len(items):
                raise RuntimeError(f"{len(items)} items gave {len(outcomes)} outcomes")
            return outcomes
        except UnavailableError:
            raise
        except Exception as error:
            if len(items) == 1:
                logger.warning("an item cannot be scored", exc_info=error)
                return [ItemError(f"scoring failed with {type(error).__name__}: {error}")]
        half = len(items) // 2
        first = await self._stages(items[:half], requests)
        return first + await self._stages(items[half:], requests)

    def _run_wanted(
        self, prepared: Prepared, requests: set[_Request[Scored]]
    ) -> list[Scored | ItemError] | None:
        # Asked on the device's thread, because callers may have gone while the batch stood in line.
        return None if all(request.gone for request in requests) else self.run(prepared)
