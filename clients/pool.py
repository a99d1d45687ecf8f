"""Replicas of a server as one transport: least outstanding, out when dead, back when alive, hedged."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from rewardzoo.clients.process import PerProcess
from rewardzoo.clients.retries import retrying
from rewardzoo.clients.server import ServerTransport
from rewardzoo.clients.transport import Part, Reply, Transport
from rewardzoo.errors import DeadlineError, OverloadedError, UnavailableError

PROBE_TIMEOUT = 2.0
_PROBE_PAUSE = 0.5
# How long a replica may be silent before it is asked whether it is alive.
_SILENCE = 5.0
# For how long a full replica that gives no hint is passed over.
_FULL_PAUSE = 0.5
_T = TypeVar("_T")


class Pool(Transport):
    """Sends each part to the replica with the fewest outstanding, and repeats what may be repeated.

    A replica that cannot be reached, or is silent and fails its health check, gets nothing until a probe
    finds it ready again; its parts go to another at once. With `hedge_after` a part that has no answer
    after so many seconds is sent to another replica too, and the first answer counts. Parts are scored
    as a whole by one replica, so no item is in a result twice. Thread-safe.
    """

    def __init__(self, servers: Sequence[ServerTransport], *, hedge_after: float | None = None) -> None:
        if not servers:
            raise ValueError("a pool needs at least one replica")
        if hedge_after is not None and not hedge_after > 0:
            raise ValueError(f"hedge_after must be > 0 seconds, got {hedge_after}")
        self._hedge_after = hedge_after
        self._servers = servers
        self._replicas = PerProcess(lambda: _Replicas(servers))

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        """Score a part; see `Transport`."""
        return self.infer_all([model], part, deadline=deadline)[0]

    def infer_all(self, models: Sequence[str], part: Part, *, deadline: float) -> Sequence[Reply]:
        """Score a part with each of `models`; see `Transport`."""

        def ask(server: ServerTransport) -> Sequence[Reply]:
            return server.infer_all(models, part, deadline=deadline)

        if len(self._servers) == 1:
            return retrying(lambda: ask(self._servers[0]), deadline)
        replicas = self._replicas()
        return retrying(lambda: _race(replicas, ask, self._hedge_after), deadline)

    def any(self, ask: Callable[[ServerTransport], _T]) -> _T:
        """Return what the first replica answers that can be reached, the healthiest asked first.

        Raises:
            UnavailableError: none can.
        """
        replicas = self._replicas()
        tried: list[_Replica] = []
        while True:
            tried.append(replicas.pick(tried))
            try:
                return ask(tried[-1].server)
            except UnavailableError:
                if len(tried) == len(self._servers):
                    raise

    def ready(self, *, timeout: float) -> bool:
        """Say whether any replica is ready."""
        return any(server.ready(timeout=timeout) for server in self._servers)

    def close(self) -> None:
        """Close all connections."""
        if replicas := self._replicas.made():
            replicas.closed.set()
        for server in self._servers:
            server.close()


class _Replica:
    def __init__(self, server: ServerTransport) -> None:
        self.server = server
        self.outstanding = 0
        self.down = False
        self.full_until = 0.0

    def badness(self) -> tuple[bool, bool, int, float]:
        return self.down, self.full_until > time.monotonic(), self.outstanding, random.random()


class _Replicas:
    """What is known of the replicas in this process."""

    def __init__(self, servers: Sequence[ServerTransport]) -> None:
        self.all = [_Replica(server) for server in servers]
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._watching = False

    def pick(self, but: Collection[_Replica]) -> _Replica:
        """Return the best replica that is not among `but`; there must be one."""
        with self._lock:
            return min((r for r in self.all if r not in but), key=_Replica.badness)

    def spare(self, but: Collection[_Replica]) -> _Replica | None:
        """Return the best replica that is up and not among `but`."""
        with self._lock:
            return min(
                (r for r in self.all if r not in but and not r.down), key=_Replica.badness, default=None
            )

    def count(self, replica: _Replica, change: int) -> None:
        with self._lock:
            replica.outstanding += change

    def blame(self, replica: _Replica, error: UnavailableError) -> None:
        """Remember that a replica failed: a full one rests, one that is gone is watched."""
        with self._lock:
            if isinstance(error, OverloadedError):
                replica.full_until = time.monotonic() + (error.retry_after or _FULL_PAUSE)
            elif not isinstance(error, DeadlineError):
                replica.down = True
                if not self._watching:
                    self._watching = True
                    threading.Thread(target=self._watch, name="rewardzoo-watch", daemon=True).start()

    def _watch(self) -> None:
        while not self.closed.wait(_PROBE_PAUSE):
            for replica in self.all:
                if replica.down and replica.server.ready(timeout=PROBE_TIMEOUT):
                    replica.down = False
            with self._lock:
                if not any(replica.down for replica in self.all):
                    self._watching = False
                    return


class _SilentError(UnavailableError):
    """A replica neither answers nor passes its health check."""


def _race(replicas: _Replicas, ask: Callable[[ServerTransport], _T], hedge_after: float | None) -> _T:
    """Ask one replica, another where that one fails or is silent, and return the first answer."""
    answers: queue.SimpleQueue[tuple[_Replica, _T | None, Exception | None]] = queue.SimpleQueue()
    asked: list[_Replica] = []
    flying: set[_Replica] = set()
    over = threading.Event()

    def run(replica: _Replica) -> None:
        try:
            answers.put((replica, ask(replica.server), None))
        except Exception as error:
            answers.put((replica, None, error))
        finally:
            replicas.count(replica, -1)

    def start(replica: _Replica) -> None:
        asked.append(replica)
        flying.add(replica)
        replicas.count(replica, 1)
        threading.Thread(target=run, args=(replica,), name="rewardzoo-ask", daemon=True).start()

    def hedge() -> None:
        if other := replicas.spare(asked):
            start(other)

    def check() -> None:
        while not over.is_set():
            for replica in tuple(flying):
                if not replica.server.ready(timeout=PROBE_TIMEOUT):
                    answers.put(
                        (replica, None, _SilentError("a replica is silent and fails its health check"))
                    )
            over.wait(_SILENCE)

    start(replicas.pick([]))
    begun = time.monotonic()
    watch = threading.Thread(target=check, name="rewardzoo-check", daemon=True).start
    events: list[tuple[float, Callable[[], None]]] = [(begun + _SILENCE, watch)]
    if hedge_after is not None:
        events.append((begun + hedge_after, hedge))
    events.sort(key=lambda event: event[0], reverse=True)
    try:
        while True:
            wait = max(events[-1][0] - time.monotonic(), 0.0) if events else None
            try:
                replica, answer, error = answers.get(timeout=wait)
            except queue.Empty:
                events.pop()[1]()
                continue
            if error is None:
                return answer  # type: ignore[return-value]
            if replica not in flying:
                continue  # given up before
            if not isinstance(error, UnavailableError):
                raise error
            flying.discard(replica)
            replicas.blame(replica, error)
            if other := replicas.spare(asked):
                start(other)
            elif not flying:
                raise error
    finally:
        over.set()
