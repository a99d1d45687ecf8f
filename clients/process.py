"""What a forked or unpickled process must make anew: threads, locks and sockets."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class PerProcess(Generic[_T]):
    """A value that each process makes for itself on first use. Thread-safe, and pickled without it.

    Making it must cost nothing and hold nothing: of threads that race for the first use all make one,
    and the same one is kept for all.
    """

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        # By process id, not replaced: a parent's sockets must not be closed from its child.
        self._values: dict[int, _T] = {}

    def __call__(self) -> _T:
        """Return this process's value, made now if need be."""
        pid = os.getpid()
        found = self._values.get(pid)
        return found if found is not None else self._values.setdefault(pid, self._make())

    def made(self) -> _T | None:
        """Return this process's value if it has been made."""
        return self._values.get(os.getpid())

    def __getstate__(self) -> dict[str, object]:
        return {"_make": self._make, "_values": {}}
