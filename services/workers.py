"""Threads of the host's processor, shared by all models, and what they decode."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rewardzoo.clients.images import Pixels, decode_image

T = TypeVar("T")
S = TypeVar("S")


class Workers:
    """A bounded pool of threads for work that is done item by item.

    `each` is `map` in parallel. The calling thread takes part, so a lone item costs no dispatch, and a pool
    that is busy with others delays nobody beyond a loop of its own.
    """

    def __init__(self, threads: int = 0) -> None:
        self.threads = threads or _cores()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="worker")

    def each(self, fn: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """Return `fn` of each item, in their order; raises what one of the calls raised."""
        results: dict[int, T] = {}
        todo = deque(range(len(items)))

        def work() -> None:
            while todo:
                try:
                    i = todo.popleft()
                except IndexError:  # another thread was faster
                    return
                results[i] = fn(items[i])

        helpers = [self._pool.submit(work) for _ in range(min(self.threads, len(items)) - 1)]
        try:
            work()
        finally:
            todo.clear()
            late = [helper for helper in helpers if not helper.cancel()]
        for helper in late:
            helper.result()
        return [results[i] for i in range(len(items))]

    def stop(self) -> None:
        """End the threads, once what they do is done."""
        self._pool.shutdown()


def _cores() -> int:
    """Cores that this process may use: in a container they are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS, Windows


class Encoded:
    """An image file that is decoded when it is needed: `pixels` raises `ItemError` as `decode_image`.

    One that several rewards score is decoded once, as long as `shelf` has room to keep it in between.
    """

    __slots__ = ("_lock", "_uses", "data", "shelf")

    def __init__(self, data: bytes, uses: int = 1, shelf: Shelf | None = None) -> None:
        self.data, self.shelf = data, shelf
        self._uses = uses
        self._lock = threading.Lock()

    def pixels(self) -> Pixels:
        """Decode it, or take what was decoded before."""
        if self.shelf is None:
            return decode_image(self.data)
        with self._lock:
            self._uses -= 1
            found = self.shelf.take(self)
            pixels = decode_image(self.data) if found is None else found
            if self._uses > 0:
                self.shelf.put(self, pixels)
            return pixels


class Shelf:
    """Decoded images that another reward is going to ask for, at most `room` bytes of them. Thread-safe."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.held = 0
        self._lock = threading.Lock()
        self._images: OrderedDict[Encoded, Pixels] = OrderedDict()

    def put(self, image: Encoded, pixels: Pixels) -> None:
        """Keep an image; the oldest ones make room for it."""
        with self._lock:
            self._images[image] = pixels
            self.held += pixels.nbytes
            while self.held > self.room:
                self.held -= self._images.popitem(last=False)[1].nbytes

    def take(self, image: Encoded) -> Pixels | None:
        """Give an image away, if it is there."""
        with self._lock:
            pixels = self._images.pop(image, None)
            self.held -= 0 if pixels is None else pixels.nbytes
            return pixels

    def drop(self, images: Iterable[Encoded]) -> None:
        """Forget images that nobody will ask for again."""
        for image in images:
            self.take(image)
