"""The one thread on which models run, and what its failures mean."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from rewardzoo.errors import UnavailableError

logger = logging.getLogger(__name__)
T = TypeVar("T")
_NO_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")


class OutOfMemoryError(Exception):
    """The device had no room for the work; less of it may fit."""


@dataclass(slots=True, eq=False)
class _Turn:
    work: Callable[[], Any]
    result: Future[Any]


class Device:
    """Runs work of several models on one thread, one at a time.

    Whoever has used the device least goes next, by time and not by turns, so a slow model does not crowd out
    a fast one. One that was idle starts level with the others: it has saved nothing up.

    A fatal error of the device, after which nothing can run in this process, is kept as `failure`: it is what
    all later work gets. `on_lost` is then called, on the event loop.
    """

    def __init__(
        self,
        on_lost: Callable[[UnavailableError], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failure: UnavailableError | None = None
        self.restart_after = 15.0
        """Seconds that a caller is told to wait for a new process."""
        self._on_lost, self._clock = on_lost, clock
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[_Turn]] = defaultdict(deque)
        self._used: dict[str, float] = defaultdict(float)
        self._level = 0.0
        self._running: str | None = None
        self._open = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to work; needs a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End, once all that waits is done."""
        if self._thread is None:
            return
        with self._changed:
            self._open = False
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        self._thread = None

    async def run(self, user: str, work: Callable[[], T]) -> T:
        """Return what `work` returns, called on the device's thread at the user's turn.

        Cancelling the call takes it back, if it has not begun.

        Raises:
            OutOfMemoryError: the device has no room for it.
            UnavailableError: the device is lost.
        """
        turn = _Turn(work, Future())
        with self._changed:
            if not self._open:
                raise UnavailableError("the server is stopping")
            if not self._waiting[user] and self._running != user:
                self._used[user] = max(self._used[user], self._level)
            self._waiting[user].append(turn)
            self._changed.notify()
        result: T = await asyncio.wrap_future(turn.result)
        return result

    def used(self, user: str) -> float:
        """Seconds of the device that count as the user's."""
        return self._used[user]

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            user, work, result = turn
            if result.set_running_or_notify_cancel():
                began = self._clock()
                self._do(work, result)
                del work, turn  # what they hold is the device's memory
                self._used[user] += self._clock() - began
            with self._changed:
                self._running = None

    def _next(self) -> tuple[str, Callable[[], Any], Future[Any]] | None:
        with self._changed:
            while True:
                users = [user for user, turns in self._waiting.items() if turns]
                if users:
                    break
                if not self._open:
                    return None
                self._changed.wait()
            user = min(users, key=lambda name: self._used[name])
            self._level = max(self._level, self._used[user])
            self._running = user
            turn = self._waiting[user].popleft()
            return user, turn.work, turn.result

    def _do(self, work: Callable[[], Any], result: Future[Any]) -> None:
        if self.failure is not None:
            result.set_exception(_again(self.failure))
            return
        try:
            answer = work()
        except Exception as error:
            problem = self.judge(error)
        else:
            result.set_result(answer)
            return
        # Out of the handler: the traceback holds the frames of the model, and they its memory.
        if isinstance(problem, OutOfMemoryError):
            empty_cache()
        result.set_exception(problem)

    def judge(self, error: Exception) -> Exception:
        """Return what an exception of work for the device means.

        It is an `OutOfMemoryError`, an `UnavailableError` where it has lost the device, or itself.
        """
        if isinstance(error, OutOfMemoryError | UnavailableError):
            return error
        if is_out_of_memory(error):
            return OutOfMemoryError(str(error))
        if is_fatal(error):
            logger.critical("the device is lost: %s", error)
            message = f"the device is lost, restart the server: {error}"
            self.failure = UnavailableError(message, self.restart_after)
            self._loop.call_soon_threadsafe(self._on_lost, self.failure)
            return self.failure
        return error


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception means that the device, or the host, had no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _NO_MEMORY)


def is_fatal(error: BaseException) -> bool:
    """Say whether nothing can run in this process's CUDA context any more."""
    import torch

    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def _again(error: UnavailableError) -> UnavailableError:
    return UnavailableError(str(error), error.retry_after)


def empty_cache() -> None:
    """Give cached memory back, so that other sizes can be had from it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
