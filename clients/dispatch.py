"""Rows of any number of calls, sent in parts by a few threads.

A thread fills a part from the calls of one lane (those that ask for the same rewards) and sends it. So a
call of many items is cut into parts that several threads send, and thousands of calls of one item need
few requests and few threads.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rewardzoo.clients.calls import Call, Row, as_part, by_call
from rewardzoo.clients.transport import Transport
from rewardzoo.errors import RequestError, TooLargeError, UnavailableError

MAX_PART_ITEMS = 64
MAX_PART_BYTES = 32 * 2**20
FEW_ITEMS = 8
"""A call of up to so many items may wait for company."""
LINGER = 0.01
"""How many seconds it waits at most for half as many as there lately were."""
_IDLE = 10.0
# Calls of one part whose deadlines lie closer than this fail together.
_SAME_TIME = 1.0
_FAREWELL = 1.0


class Dispatcher:
    """Sends calls over `transport`, at most `max_in_flight` parts at a time. Thread-safe.

    Its threads start when there is work, are daemons, and end when there has been none for a while.
    """

    def __init__(self, transport: Transport, max_in_flight: int) -> None:
        self._transport = transport
        self._max_in_flight = max_in_flight
        self._changed = threading.Condition()
        self._lanes: dict[tuple[str, ...], _Lane] = {}
        self._threads = self._idle = 0
        self._closed = False
        self._pid = os.getpid()
        _made.add(self)

    def submit(self, call: Call) -> None:
        """Begin a call; its future says when it is done."""
        if not call.start():
            return
        with self._changed:
            if self._closed:
                raise ValueError("this scorer is closed")
            if (lane := self._lanes.get(call.rewards)) is None:
                lane = self._lanes[call.rewards] = _Lane(call.rewards, min(2, self._max_in_flight))
            seen = lane.busy or lane.waiting  # a thread is at it, or has its time in view
            lane.add(call)
            if not seen or (not lane.called and lane.due() <= time.monotonic()):
                lane.called = seen
                self._rouse()

    def close(self) -> None:
        """Send no more; calls that have not been sent in full fail."""
        with self._changed:
            self._closed = True
            calls = [call for lane in self._lanes.values() for call in lane.calls]
            self._changed.notify_all()
        for call in calls:
            call.fail(ValueError("the scorer was closed during the call"))

    @property
    def resting(self) -> bool:
        """Whether no thread of this process has anything of a call in its hands."""
        return self._pid != os.getpid() or self._threads == self._idle

    def _work(self) -> None:
        try:
            while (lane := self._acquire()) is not None:
                self._serve(lane)
        finally:
            with self._changed:
                self._threads -= 1

    def _serve(self, lane: _Lane) -> None:
        """Fill a part and send it. What is sent is let go of on return, not when there is more to do."""
        rows: list[Row] = []
        calls = 0
        try:
            rows = lane.fill()
            calls = len({id(row.call) for row in rows})
        finally:
            with self._changed:
                lane.busy = False
                lane.flying += calls
                self._lanes[lane.rewards] = self._lanes.pop(lane.rewards)  # rewards take turns
                if lane.waiting:
                    self._rouse()
        if not rows:
            return
        try:
            self._send(lane.rewards, rows)
        finally:
            with self._changed:
                lane.flying -= calls
                lane.since = time.monotonic()  # those whose calls are done may be about to make the next

    def _rouse(self) -> None:
        """Have one more thread look for work; the lock is held."""
        if self._idle:
            self._changed.notify()
        elif self._threads < self._max_in_flight and not self._closed:
            self._threads += 1
            threading.Thread(target=self._work, name="rewardzoo-send", daemon=True).start()

    def _acquire(self) -> _Lane | None:
        """Return a lane that has something to send, for this thread alone; None to end the thread."""
        with self._changed:
            give_up = time.monotonic() + _IDLE
            while not self._closed:
                now = time.monotonic()
                due = math.inf
                for lane in self._lanes.values():
                    if lane.busy or not lane.waiting:
                        continue
                    if lane.due() <= now:
                        lane.take()
                        if any(other.waiting and not other.busy for other in self._lanes.values()):
                            self._rouse()  # the others' time must stay in somebody's view
                        return lane
                    due = min(due, lane.due())
                if due == math.inf and now >= give_up:
                    break
                self._idle += 1
                self._changed.wait(min(due, max(give_up, now)) - now)
                self._idle -= 1
            return None

    def _send(self, rewards: Sequence[str], rows: Sequence[Row]) -> None:
        """Have rows scored, and tell their calls. What fails a neighbour fails nobody else."""
        calls = by_call(rows)
        deadline = min(call.deadline for call in calls)
        for call, places in calls.items():
            call.sent(len(places))
        try:
            replies = self._transport.infer_all(rewards, as_part(rows), deadline=deadline)
            if [len(reply.scores) for reply in replies] != [len(rows)] * len(rewards):
                raise RequestError(
                    f"other numbers of scores than {len(rows)} items of {len(rewards)} rewards"
                )
        except BaseException as error:
            again: list[list[Row]] = []
            if len(calls) > 1 and type(error) in (RequestError, TooLargeError):
                again = [[row for row in rows if row.call is call] for call in calls]
            elif isinstance(error, UnavailableError):
                later = [row for row in rows if row.call.deadline > deadline + _SAME_TIME]
                again = [later] if later else []
            kept = {row.call for part in again for row in part}
            for call, places in calls.items():
                if call in kept:
                    call.sent(-len(places))
                else:
                    call.lost(len(places), error)
            for part in again:
                self._send(rewards, part)
        else:
            for call, places in calls.items():
                call.landed(places, replies)


_made: weakref.WeakSet[Dispatcher] = weakref.WeakSet()


@atexit.register
def _let_go() -> None:
    """Give the threads a moment to let go of what they sent, before the interpreter ends them.

    It ends a daemon thread where that next asks for the GIL. Freeing a tensor asks for it, inside of C++ that
    cannot be left so: the process would abort.
    """
    end = time.monotonic() + _FAREWELL
    while time.monotonic() < end and not all(dispatcher.resting for dispatcher in list(_made)):
        time.sleep(0.002)


class _Lane:
    """The calls that ask for the same rewards, and rows of theirs that wait for a part to fill up."""

    def __init__(self, rewards: tuple[str, ...], shares: int) -> None:
        self.rewards = rewards
        self.shares = shares  # of few-item calls, so that one is scored while the next is made
        self.calls: deque[Call] = deque()
        self.busy = False
        self.called = False  # a thread was told that it is due
        self.few = True  # all that waits is calls of few items
        self.flying = 0  # how many calls are in parts that are being sent
        self.crowd = 1  # how many calls there lately were at a time, waiting or flying
        self.since = 0.0  # when the wait for the crowd began
        self._open: dict[object, _Rows] = {}

    @property
    def waiting(self) -> bool:
        return bool(self.calls or self._open)

    def add(self, call: Call) -> None:
        if not self.waiting:
            self.since, self.few = time.monotonic(), True
        self.few = self.few and len(call) <= FEW_ITEMS
        self.calls.append(call)
        self.crowd = max(self.crowd, len(self.calls) + self.flying)

    def take(self) -> None:
        """Have the lane for one thread alone."""
        self.busy, self.called = True, False
        there = len(self.calls) + self.flying
        if there < self.crowd:
            self.crowd = max(there, self.crowd * 3 // 4, 1)

    @property
    def enough(self) -> int:
        """How many calls are worth a part."""
        return min(-(-self.crowd // self.shares), MAX_PART_ITEMS)

    def due(self) -> float:
        """Return when, in `time.monotonic()`, a part should be filled, full or not."""
        return 0.0 if len(self.calls) >= self.enough or not self.few else self.since + LINGER

    def fill(self) -> list[Row]:
        """Draw rows until a part is full; without enough of them, return the fullest there is."""
        left = self.enough if self.few and not self.flying else math.inf
        while self.calls and left > 0:
            call = self.calls[0]
            try:
                row = call.draw()
            # Whatever is wrong with the arguments is that call's, and must not end the thread.
            except Exception as error:
                call.fail(error)
                row = None
            if row is None:
                self.calls.popleft()
                left -= 1
                continue
            if full := self._put(row):
                # Calls take turns, so that a long one does not hold up the others.
                self.calls.rotate(-1)
                return full
        for kind in sorted(self._open, key=lambda kind: len(self._open[kind].rows), reverse=True):
            if rows := self._open.pop(kind).alive():
                return rows
        return []

    def _put(self, row: Row) -> list[Row]:
        """Add a row to its like; return a part where that makes, or would overfill, one."""
        kind = row.kind
        if (like := self._open.get(kind)) is None:
            like = self._open[kind] = _Rows()
        if like.rows and like.size + row.size > MAX_PART_BYTES:
            self._open[kind] = _Rows([row], row.size)
            return like.alive()
        like.rows.append(row)
        like.size += row.size
        return self._open.pop(kind).alive() if len(like.rows) == MAX_PART_ITEMS else []


@dataclass
class _Rows:
    """Rows of one kind, and how many bytes their images have."""

    rows: list[Row] = field(default_factory=list)
    size: int = 0

    def alive(self) -> list[Row]:
        return [row for row in self.rows if not row.call.over]
