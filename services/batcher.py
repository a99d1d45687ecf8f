"""Requests in, full batches to the device, scores back to whoever asked."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Generic, Protocol, TypeVar

from rewardzoo.errors import DeadlineError, ItemError, OverloadedError, UnavailableError
from rewardzoo.services.capacity import BatchLimit
from rewardzoo.services.device import Device, OutOfMemoryError
from rewardzoo.services.observer import Observer, Silent
from rewardzoo.services.queue import Entry, FairQueue, Item, Request

__all__ = ["Batcher", "Item", "Stages"]

logger = logging.getLogger(__name__)

Part = TypeVar("Part")
Prepared = TypeVar("Prepared")
Scored = TypeVar("Scored")
Told = TypeVar("Told", covariant=True)
# One batch on the device and one prepared behind it: more would only take items from the queue,
# where they can still be merged, dropped and counted.
_AHEAD = 2


class Stages(Protocol[Part, Prepared, Told]):
    """What happens to items on their way."""

    def prepare(self, items: Sequence[Item]) -> Sequence[Part | ItemError]:
        """Decode and preprocess each item, in a thread."""

    def collate(self, parts: Sequence[Part]) -> Prepared:
        """Make a batch of prepared items, in a thread."""

    def run(self, prepared: Prepared) -> Sequence[Told | ItemError]:
        """Score a batch on the device's thread: one outcome an item."""


class Batcher(Generic[Part, Prepared, Scored]):
    """Merges small requests into batches of at most `max_batch` items and splits large ones.

    A batch is also limited to `max_cost`, the sum of its items' costs, where they have any. A full batch is
    prepared while the one before it runs; one that is not full keeps collecting until the device is free,
    and then `window` seconds more. Requests share each batch evenly, so a small one never waits for a large
    one to end. A request of up to `max_batch` items that meets no other is one batch, in its own order.

    Items whose caller is gone are dropped before each stage, also from the midst of a batch. When a stage
    raises, the batch is halved until the item at fault is alone: the exception becomes that item's
    `ItemError`, and its neighbours are scored. So it is when the device has no memory for the batch, and
    later batches are smaller. An `UnavailableError` says that not an item is at fault but the device: it
    fails all requests there are, and every later one.
    """

    def __init__(
        self,
        name: str,
        stages: Stages[Part, Prepared, Scored],
        device: Device,
        *,
        max_batch: int,
        max_cost: int | None = None,
        window: float = 0.002,
        max_queue: int = 8192,
        observer: Observer | None = None,
    ) -> None:
        self.name, self.stages, self.device = name, stages, device
        self.max_batch, self.window, self.max_queue = max_batch, window, max_queue
        self.limit = BatchLimit(name, max_batch if max_cost is None else max_cost)
        self.observer: Observer = observer or Silent()
        self._failure: UnavailableError | None = UnavailableError("the batcher is not started")
        self._queue: FairQueue[Scored] = FairQueue()
        self._pace = 0.0
        self._changed = asyncio.Event()
        self._active: set[asyncio.Task[None]] = set()
        self._composer: asyncio.Task[None] | None = None

    @property
    def failure(self) -> UnavailableError | None:
        """Why it takes no requests, if it does not."""
        return self._failure or self.device.failure

    @property
    def waiting(self) -> int:
        """How many items are not on their way to the device yet."""
        return self._queue.items

    def start(self) -> None:
        """Begin to serve; needs a running event loop."""
        self._preparers = ThreadPoolExecutor(_AHEAD, thread_name_prefix="prepare")
        self._failure = None
        self._composer = asyncio.create_task(self._compose())

    async def stop(self) -> None:
        """End: batches on their way to the device finish, what still waits is refused."""
        if self._composer is None:
            return
        self._failure = UnavailableError("the server is stopping")
        self._composer.cancel()
        with suppress(asyncio.CancelledError):
            await self._composer
        for request in self._queue.clear():
            request.fail(self._failure)
        await asyncio.gather(*self._active)
        self._preparers.shutdown()
        self._composer = None

    def check_room(self, items: int = 1) -> None:
        """Refuse what there is no room for. An empty queue takes any number of items.

        Raises:
            OverloadedError: so many items more would be too many.
            UnavailableError: not started, stopping, or the device is lost.
        """
        if self.failure is not None:
            raise self.failure
        queued = self._queue.items
        if queued and queued + items > self.max_queue:
            raise OverloadedError(
                f"{queued} items wait and {items} more would exceed {self.max_queue}: "
                "repeat later, send fewer at once, or raise max_queue",
                retry_after=math.ceil(min(60.0, max(1.0, queued * self._pace))),
            )

    async def submit(
        self, items: Sequence[Item], timeout: float, costs: Sequence[int] | None = None
    ) -> list[Scored | ItemError]:
        """Score `items`, one outcome each, in their order. `costs` are 1 each where they are not given.

        Cancelling the call drops what of it has not reached the device.

        Raises:
            OverloadedError: too many items wait already.
            DeadlineError: no scores within `timeout` seconds.
            UnavailableError: not started, stopping, or the device is lost.
        """
        if not items and self.failure is None:
            return []
        try:
            self.check_room(len(items))
        except OverloadedError:
            self.observer.scored(self.name, "refused", len(items))
            raise
        request: Request[Scored] = Request(
            items, costs or [1] * len(items), asyncio.get_running_loop().create_future()
        )
        self._queue.add(request)
        self._queue_changed()
        try:
            async with asyncio.timeout(timeout):
                outcomes = await request.future
        except TimeoutError:
            self.observer.scored(self.name, "expired", len(items) - request.scored)
            raise DeadlineError(
                f"{request.scored} of {len(items)} items were scored when the time was up: "
                "send fewer at once or allow more time"
            ) from None
        except asyncio.CancelledError:
            self.observer.scored(self.name, "dropped", len(items) - request.scored)
            raise
        finally:
            self._queue.remove(request)
            self._queue_changed()
        failed = sum(isinstance(outcome, ItemError) for outcome in outcomes)
        self.observer.scored(self.name, "ok", len(items) - failed)
        self.observer.scored(self.name, "item_error", failed)
        return outcomes

    def _queue_changed(self) -> None:
        self.observer.queued(self.name, self._queue.items)
        self._changed.set()

    async def _compose(self) -> None:
        while True:
            while not (self._queue.items and self._has_room()):
                await self._change()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.window):
                    while not self._is_full():
                        await self._change()
            if batch := self._queue.take(self.max_batch, self.limit.cost):
                now = time.monotonic()
                for entry in batch:
                    # In the request's own context, so that the wait can be told of it.
                    entry.request.context.run(self.observer.waited, self.name, now - entry.request.arrived)
                self.observer.queued(self.name, self._queue.items)
                task = asyncio.create_task(self._score(batch))
                self._active.add(task)
                task.add_done_callback(self._finished)

    def _is_full(self) -> bool:
        return self._queue.items >= self.max_batch or self._queue.cost >= self.limit.cost

    def _has_room(self) -> bool:
        return len(self._active) < (_AHEAD if self._is_full() else 1)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._active.discard(task)
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _score(self, batch: list[Entry[Scored]]) -> None:
        started = time.monotonic()
        try:
            await self._run(*await self._prepare(batch))
        except UnavailableError as error:
            self._failure = error
            for request in {entry.request for entry in batch}.union(self._queue.clear()):
                request.fail(error)
        self._pace = (time.monotonic() - started) / len(batch)

    async def _prepare(
        self, entries: Sequence[Entry[Scored]]
    ) -> tuple[list[tuple[Entry[Scored], Part]], Prepared | None]:
        entries = [entry for entry in entries if not entry.request.gone]
        if not entries:
            return [], None
        loop = asyncio.get_running_loop()
        try:
            parts, prepared = await loop.run_in_executor(self._preparers, self._make, entries)
        except UnavailableError:
            raise
        except Exception as error:
            if len(entries) == 1:
                entries[0].put(_item_error(error))
                return [], None
        else:
            pairs = []
            for entry, part in zip(entries, parts, strict=True):
                if isinstance(part, ItemError):
                    entry.put(part)
                else:
                    pairs.append((entry, part))
            return pairs, prepared
        half = len(entries) // 2
        first, _ = await self._prepare(entries[:half])
        second, _ = await self._prepare(entries[half:])
        return first + second, None

    def _make(self, entries: Sequence[Entry[Scored]]) -> tuple[Sequence[Part | ItemError], Prepared | None]:
        """Prepare and collate in one go, because a lone request feels each change of threads."""
        parts = self.stages.prepare([entry.item for entry in entries])
        _check_count(entries, parts)
        good = [part for part in parts if not isinstance(part, ItemError)]
        try:
            return parts, self.stages.collate(good) if good else None
        except Exception:
            return parts, None  # `_run` meets it again, where it is known what to do

    async def _run(
        self, pairs: Sequence[tuple[Entry[Scored], Part]], prepared: Prepared | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        while wanted := [pair for pair in pairs if not pair[0].request.gone]:
            if len(wanted) < len(pairs):
                pairs, prepared = wanted, None
            entries = [entry for entry, _ in pairs]
            try:
                if prepared is None:
                    parts = [part for _, part in pairs]
                    prepared = await loop.run_in_executor(self._preparers, self.stages.collate, parts)
                ran = await self.device.run(self.name, partial(self._turn, prepared, entries))
                if ran is None:
                    continue  # some callers left while the batch stood in line
                _check_count(entries, ran[0])
            except UnavailableError:
                raise
            except Exception as error:
                problem = self.device.judge(error)
            else:
                for entry, outcome in zip(entries, ran[0], strict=True):
                    entry.put(outcome)
                self.observer.ran(self.name, len(entries), ran[1])
                self.limit.passed()
                return
            prepared = None  # it may hold the device's memory
            await self._halve(pairs, problem)
            return

    async def _halve(self, pairs: Sequence[tuple[Entry[Scored], Part]], problem: Exception) -> None:
        if isinstance(problem, UnavailableError):
            raise problem
        if isinstance(problem, OutOfMemoryError):
            self.limit.shrink(sum(entry.cost for entry, _ in pairs))
        if len(pairs) == 1:
            pairs[0][0].put(_item_error(problem))
            return
        half = len(pairs) // 2
        await self._run(pairs[:half])
        await self._run(pairs[half:])

    def _turn(
        self, prepared: Prepared, entries: Sequence[Entry[Scored]]
    ) -> tuple[Sequence[Scored | ItemError], float] | None:
        # Asked on the device's thread, because callers may have gone while the batch stood in line.
        if any(entry.request.gone for entry in entries):
            return None
        began = time.monotonic()
        return self.stages.run(prepared), time.monotonic() - began


def _check_count(entries: Sequence[object], outcomes: Sequence[object]) -> None:
    if len(outcomes) != len(entries):
        raise RuntimeError(f"{len(entries)} items gave {len(outcomes)} outcomes")


def _item_error(error: Exception) -> ItemError:
    if isinstance(error, OutOfMemoryError):
        return ItemError(f"the device has no memory for this item alone: scale the image down ({error})")
    logger.warning("an item cannot be scored", exc_info=error)
    return ItemError(f"scoring failed with {type(error).__name__}: {error}")
