"""(c) A lone request's latency before, during and after a burst. A burst must leave nothing behind."""

from __future__ import annotations

import threading
import time

import numpy as np

from benchmarks.serving.harness import fakes, median, percentile, report, running, seconds
from rewardzoo import RewardClient

REWARD = "fake:slow"
IMAGE = np.zeros((64, 64, 3), np.uint8)


def main(requests: int = 200, burst_seconds: float = 6.0, burst_clients: int = 32) -> None:
    with running(fakes()) as server, RewardClient(server.url) as client:

        def lone() -> list[float]:
            return [seconds(lambda: client.score([IMAGE], "a", reward=REWARD)) for _ in range(requests)]

        lone()  # warms up
        found = {"before": lone()}
        with Burst(server.url, burst_clients):
            end = time.monotonic() + burst_seconds
            found["during"] = []
            while time.monotonic() < end:
                found["during"].append(seconds(lambda: client.score([IMAGE], "a", reward=REWARD)))
        found["after"] = lone()
        client.score([IMAGE] * 1000, "a", reward=REWARD)
        found["after 1,000 items at once"] = lone()
    before = median(found["before"])
    rows = [
        {
            "when": when,
            "requests": len(times),
            "median_ms": 1e3 * median(times),
            "p99_ms": 1e3 * percentile(times, 0.99),
            "ratio_to_before": median(times) / before,
        }
        for when, times in found.items()
    ]
    report(
        "latency", rows, reward=REWARD, burst=f"{burst_clients} clients, 16 items each, {burst_seconds:g} s"
    )


class Burst:
    """Clients that score as fast as they are answered, for the length of a `with` block."""

    def __init__(self, url: str, clients: int) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._score, args=(url,)) for _ in range(clients)]

    def _score(self, url: str) -> None:
        with RewardClient(url) as client:
            while not self._stop.is_set():
                client.score([IMAGE] * 16, "a", reward=REWARD)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
