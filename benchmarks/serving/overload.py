"""Ten times the load that the device can take: goodput, how fast the rest is refused, and memory."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import httpx
import numpy as np

from benchmarks.serving.harness import fakes, median, percentile, report, running
from rewardzoo import RewardClient
from rewardzoo.clients import wire

REWARD = "fake:slower"
ITEMS = 16
SIDE = 32
MAX_QUEUE = 512
Answer = tuple[int, float, bool]
"""HTTP status, seconds to the answer, whether it says when to come back."""


def body() -> tuple[bytes, dict[str, str]]:
    tensors = {
        wire.IMAGES: np.zeros((ITEMS, SIDE, SIDE, 3), np.uint8),
        wire.PROMPTS: wire.bytes_tensor(["a"] * ITEMS),
    }
    chunks, length = wire.encode({}, tensors, key="inputs")
    return b"".join(chunks), {wire.HEADER: str(length)}


def offer(url: str, rate: float, duration: float) -> list[Answer]:
    """Send requests at `rate` a second whether or not those before are answered."""
    return asyncio.run(_offer(url, rate, duration))


async def _offer(url: str, rate: float, duration: float) -> list[Answer]:
    content, headers = body()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60, trust_env=False) as http:

        async def one() -> Answer:
            started = time.perf_counter()
            try:
                answer = await http.post(f"/v2/models/{REWARD}/infer", content=content, headers=headers)
            except httpx.HTTPError:
                return 0, time.perf_counter() - started, False
            return answer.status_code, time.perf_counter() - started, "retry-after" in answer.headers

        tasks, started = [], time.perf_counter()
        for i in range(int(rate * duration)):
            await asyncio.sleep(max(0.0, started + i / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(one()))
        return await asyncio.gather(*tasks)


def main(times: float = 10.0, duration: float = 20.0, processes: int = 2) -> None:
    with running(fakes(max_queue=MAX_QUEUE)) as server:
        capacity = measure_capacity(server.url)
        rate = times * capacity / ITEMS
        before = server.resident_mib()
        resident = [before]
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
            offers = [pool.submit(offer, server.url, rate / processes, duration) for _ in range(processes)]
            started = time.monotonic()
            while not all(future.done() for future in offers):
                time.sleep(0.25)
                resident.append(server.resident_mib())
            spent = time.monotonic() - started
        answers = [answer for future in offers for answer in future.result()]
    report("overload", [_row(answers, capacity, spent, resident)], times=times, max_queue=MAX_QUEUE)


def measure_capacity(url: str, seconds: float = 10.0) -> float:
    """Items a second that callers get who wait for each other: always enough in the queue, never too many."""
    image = [np.zeros((SIDE, SIDE, 3), np.uint8)] * 256
    with RewardClient(url, max_in_flight=6) as client:
        client.score(image, "a", reward=REWARD)
        scored, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            client.score(image, "a", reward=REWARD)
            scored += len(image)
        return scored / (time.perf_counter() - started)


def _row(
    answers: Sequence[Answer], capacity: float, spent: float, resident: Sequence[float]
) -> dict[str, object]:
    good = [s for status, s, _ in answers if status == 200]
    refused = [(s, says) for status, s, says in answers if status == 503]
    return {
        "capacity_items_per_second": capacity,
        "offered_requests": len(answers),
        "seconds_with_draining": spent,
        "answered": len(good),
        "refused": len(refused),
        "other": len(answers) - len(good) - len(refused),
        "goodput_over_capacity": len(good) * ITEMS / spent / capacity,
        "answered_p50_s": median(good),
        "refused_p50_ms": 1e3 * median([s for s, _ in refused]),
        "refused_p99_ms": 1e3 * percentile([s for s, _ in refused], 0.99),
        "refused_with_retry_after": sum(says for _, says in refused),
        "resident_mib_before": resident[0],
        "resident_mib_peak": max(resident),
    }
