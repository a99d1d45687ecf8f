"""(d) Two replicas, one killed under load and started again: throughput comes back, no item is lost."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from benchmarks.serving.faults import picture
from benchmarks.serving.harness import console, fakes, report, running
from rewardzoo import RewardClient

REWARD = "fake:slow"
BATCH = 64
SETTLE = 2.0
"""Seconds behind each event that count for no rate."""


@dataclass
class Tally:
    """What the callers saw: when how many items were done, and what went wrong."""

    done: list[tuple[float, int]] = field(default_factory=list)
    wrong: int = 0
    errors: list[str] = field(default_factory=list)

    def rate(self, start: float, end: float) -> float:
        return sum(count for at, count in self.done if start <= at < end) / (end - start)

    def recovered(self, start: float, rate: float) -> float:
        """How many seconds after `start` a second begins in which `rate` is reached."""
        last = max(at for at, _ in self.done)
        for tenth in range(int(10 * (last - 1 - start))):
            if self.rate(start + tenth / 10, start + tenth / 10 + 1) >= rate:
                return tenth / 10
        return float("nan")


def main(phase_seconds: float = 12.0, callers: int = 8) -> None:
    tally, numbers, stop = Tally(), itertools.count(0, BATCH), threading.Event()

    def call(client: RewardClient) -> None:
        while not stop.is_set():
            first = next(numbers)
            try:
                scores = client.score([picture(first + i) for i in range(BATCH)], "a", reward=REWARD)
            except Exception as error:
                tally.errors.append(f"{type(error).__name__}: {error}"[:200])
                continue
            tally.wrong += int((scores != np.arange(first, first + BATCH)).sum())
            tally.done.append((time.monotonic(), BATCH))

    with (
        running(fakes()) as first,
        running(fakes()) as second,
        RewardClient([first.url, second.url], max_in_flight=callers, timeout=60) as client,
    ):
        threads = [threading.Thread(target=call, args=(client,)) for _ in range(callers)]
        for thread in threads:
            thread.start()
        began = time.monotonic() + SETTLE
        time.sleep(SETTLE + phase_seconds)
        killed = time.monotonic()
        second.kill()
        console.print("one is killed", highlight=False)
        time.sleep(SETTLE + phase_seconds)
        restarted = time.monotonic()
        second.start()
        second.wait_ready()
        back = time.monotonic()
        console.print("it is back", highlight=False)
        time.sleep(SETTLE + phase_seconds)
        ended = time.monotonic()
        stop.set()
        for thread in threads:
            thread.join()
    before = tally.rate(began, killed)
    after = tally.rate(back + SETTLE, ended)
    row = {
        "before_images_per_second": before,
        "with_one_images_per_second": tally.rate(killed + SETTLE, restarted),
        "after_images_per_second": after,
        "after_over_before": after / before,
        "seconds_until_nine_tenths": tally.recovered(back, 0.9 * before),
        "items_asked": next(numbers),
        "items_scored_right": sum(count for _, count in tally.done) - tally.wrong,
        "wrong": tally.wrong,
        "errors": tally.errors,
    }
    report("recovery", [row], reward=REWARD, callers=callers, phase_seconds=phase_seconds)
    if tally.errors or tally.wrong or row["items_asked"] != row["items_scored_right"]:
        raise SystemExit("items were lost, see the report")
