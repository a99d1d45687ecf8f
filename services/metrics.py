"""Prometheus metrics of a server, at /metrics.

They are not in BentoML's own registry, and its metrics are off: those have a series for every path that
anyone asks for, before the token is looked at, and their files are shared by all servers of a user on a
machine and deleted when one starts. There is one process a server, so that none of this is needed.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from rewardzoo.services import tracing

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_BYTES = tuple(2.0**n for n in range(10, 31, 2))
_LOADING = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """What the server counts; the `Observer` of its batchers. Thread-safe.

    Each instance has a registry of its own, so that many apps can live in a process.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._wait = Histogram(
            "rewardzoo_queue_wait_seconds",
            "Time an item waited for its batch",
            ["reward"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._device = Histogram(
            "rewardzoo_device_seconds",
            "Time a batch took on the device",
            ["reward"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch = Histogram(
            "rewardzoo_batch_items",
            "Items in a batch on the device",
            ["reward"],
            buckets=_ITEMS,
            registry=registry,
        )
        self._items = Counter(
            "rewardzoo_items",
            "Items by what became of them: ok, item_error, dropped, refused, expired",
            ["reward", "outcome"],
            registry=registry,
        )
        self._queued = Gauge("rewardzoo_queued_items", "Items that wait now", ["reward"], registry=registry)
        self._received = Histogram(
            "rewardzoo_request_size_bytes",
            "Size of a request's body as it was sent",
            buckets=_BYTES,
            registry=registry,
        )
        self._loads = Histogram(
            "rewardzoo_load_seconds",
            "Time it took to load a reward's weights",
            ["reward"],
            buckets=_LOADING,
            registry=registry,
        )
        self._evictions = Counter(
            "rewardzoo_evictions", "Rewards unloaded to make room for another", ["reward"], registry=registry
        )
        self._requests = Counter(
            "rewardzoo_requests",
            "Requests by route and status; the route is 'other' where there is none",
            ["route", "status"],
            registry=registry,
        )
        self._duration = Histogram(
            "rewardzoo_request_seconds",
            "Time from a request's first byte to its answer's last",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._active = Gauge(
            "rewardzoo_requests_in_progress", "Requests that are served now", registry=registry
        )

    def waited(self, reward: str, seconds: float) -> None:
        """Count an item's time in the queue; in the context of its request, it is noted there too."""
        tracing.waited(seconds)
        self._wait.labels(reward).observe(seconds)

    def ran(self, reward: str, items: int, seconds: float) -> None:
        """Count a batch on the device."""
        tracing.batch(reward, items, seconds)
        self._device.labels(reward).observe(seconds)
        self._batch.labels(reward).observe(items)

    def scored(self, reward: str, outcome: str, items: int) -> None:
        """Count items by what became of them."""
        self._items.labels(reward, outcome).inc(items)

    def queued(self, reward: str, items: int) -> None:
        """Say how many items wait now."""
        self._queued.labels(reward).set(items)

    def received(self, size: int) -> None:
        """Count a request's body of `size` bytes."""
        self._received.observe(size)

    def loaded(self, reward: str, seconds: float) -> None:
        """Count a reward that was loaded."""
        self._loads.labels(reward).observe(seconds)

    def evicted(self, reward: str) -> None:
        """Count a reward that was unloaded to make room."""
        self._evictions.labels(reward).inc()

    def began(self) -> None:
        """Count a request that began; `ended` must follow."""
        self._active.inc()

    def ended(self, route: str, status: int, seconds: float) -> None:
        """Count a request that ended."""
        self._active.dec()
        self._requests.labels(route, status).inc()
        self._duration.labels(route).observe(seconds)

    def exposition(self) -> bytes:
        """Return all of it in Prometheus's text format."""
        return generate_latest(self.registry)
