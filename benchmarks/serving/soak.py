"""Minutes of mixed load on one server: does memory grow?"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from random import Random
from typing import Any

import numpy as np

from benchmarks.serving.fakes import POISON
from benchmarks.serving.faults import damaged, hang_up
from benchmarks.serving.harness import fakes, median, report, running
from rewardzoo import RewardClient

REWARD = "fake:slow"
SIDES = (16, 64, 96, 224)
SAMPLE_SECONDS = 5.0


def load(url: str, seed: int, seconds: float) -> int:
    """Score batches of all sizes, poison among them, hang up now and then; return how many items."""
    random, end, items = Random(seed), time.monotonic() + seconds, 0
    files = damaged()
    with RewardClient(url) as client:
        while time.monotonic() < end:
            side = random.choice(SIDES)
            images: list[Any] = [np.full((side, side, 3), seed, np.uint8)] * random.randint(1, 48)
            prompts = [random.choice(["a", "b", "a longer prompt" * 20]) for _ in images]
            if random.random() < 0.1:
                prompts[0] = POISON
            if random.random() < 0.1:
                images = [*images[1:], files]
            if random.random() < 0.1:
                hang_up(url, len(images), random)
            client.score(images, prompts, reward=REWARD, on_error="nan")
            items += len(images)
    return items


def main(minutes: float = 10.0, clients: int = 4) -> None:
    spawn = multiprocessing.get_context("spawn")
    samples: list[tuple[float, float]] = []
    with running(fakes()) as server, ProcessPoolExecutor(clients, mp_context=spawn) as pool:
        started = time.monotonic()
        futures = [pool.submit(load, server.url, k, 60 * minutes) for k in range(clients)]
        while not all(future.done() for future in futures):
            time.sleep(SAMPLE_SECONDS)
            samples.append((time.monotonic() - started, server.resident_mib()))
        items = sum(future.result() for future in futures)
    # The first tenth warms up: pools fill and allocators settle.
    begin = median([mib for at, mib in samples if 0.1 <= at / (60 * minutes) <= 0.2])
    end = median([mib for at, mib in samples if at / (60 * minutes) >= 0.9])
    row = {"minutes": minutes, "items": items, "mib_early": begin, "mib_late": end, "growth": end / begin - 1}
    report("soak", [row], clients=clients, samples=[[round(at), round(mib, 1)] for at, mib in samples])
