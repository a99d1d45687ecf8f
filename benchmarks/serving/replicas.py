"""(d) One client over 1 to N replicas, each with a device of its own: a wait, for the cores are shared."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from benchmarks.serving.harness import fakes, median, report, running, seconds
from rewardzoo import RewardClient

REWARD = "fake:slow"
ITEMS = 4096


def main(most: int = 4, rounds: int = 3) -> None:
    images = [np.zeros((64, 64, 3), np.uint8)] * ITEMS
    rows = []
    with ExitStack() as stack:
        servers = [stack.enter_context(running(fakes())) for _ in range(most)]
        for count in (n for n in (1, 2, 4, 8, 16) if n <= most):
            urls = [server.url for server in servers[:count]]
            with RewardClient(urls, max_in_flight=4 * count) as client:
                client.score(images[:256], "a", reward=REWARD)
                times = [seconds(lambda c=client: c.score(images, "a", reward=REWARD)) for _ in range(rounds)]
            rows.append({"replicas": count, "images_per_second": ITEMS / median(times)})
    for row in rows:
        row["speedup"] = row["images_per_second"] / rows[0]["images_per_second"]
    report("replicas", rows, reward=REWARD, items=ITEMS, statistic="median")
