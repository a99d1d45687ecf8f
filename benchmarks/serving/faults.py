"""A bad day: many clients, poison among the items, callers that hang up, a server killed again and again.

Every good item must have its own score, at the caller that asked, and every poisoned one its error.
"""

from __future__ import annotations

import io
import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.managers import ValueProxy
from random import Random
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.serving.fakes import POISON
from benchmarks.serving.harness import Server, console, fakes, report, running
from rewardzoo import RewardClient
from rewardzoo.clients import wire

REWARD = "fake:slow"
POISON_EVERY = 200
HANG_UP_SHARE = 0.1
CALL_ITEMS = 25


@dataclass
class Tally:
    """What one client saw of its items; all counts but `good` and `poisoned` should be 0 in the end."""

    good: int = 0
    poisoned: int = 0
    wrong: int = 0
    missing: int = 0
    poison_scored: int = 0
    hung_up: int = 0
    call_errors: list[str] = field(default_factory=list)


def picture(number: int) -> NDArray[np.uint8]:
    """A picture whose score is `number`, below 2**24."""
    return np.full((8, 8, 3), [number >> 16, number >> 8 & 255, number & 255], np.uint8)


def damaged() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()[:4000]


def client_run(url: str, first: int, count: int, seed: int, done: ValueProxy[int]) -> Tally:
    """Score the items `first` to `first + count`, a call at a time, hanging up on some."""
    tally, random = Tally(), Random(seed)
    with RewardClient(url, timeout=120) as client:
        for start in range(first, first + count, CALL_ITEMS):
            numbers = range(start, min(start + CALL_ITEMS, first + count))
            images: list[Any] = [picture(n) for n in numbers]
            prompts = ["a"] * len(images)
            poison = [i for i, n in enumerate(numbers) if n % POISON_EVERY == 7]
            for i in poison:  # by turns a file that is damaged and a prompt that breaks the model
                if numbers[i] // POISON_EVERY % 2:
                    images[i] = damaged()
                else:
                    prompts[i] = POISON
            if random.random() < HANG_UP_SHARE:
                tally.hung_up += hang_up(url, len(images), random)
            try:
                result = client.score_result(images, prompts, reward=REWARD)
            except Exception as error:
                tally.call_errors.append(f"{type(error).__name__}: {error}"[:200])
                tally.missing += len(images)
                continue
            for i, n in enumerate(numbers):
                score, failed = float(result.scores[i]), i in result.errors
                tally.poisoned += i in poison and failed
                tally.poison_scored += i in poison and not failed
                tally.missing += i not in poison and failed
                tally.wrong += i not in poison and not failed and score != n
                tally.good += i not in poison and score == n
            done.set(done.get() + len(images))  # a client has its own counter
    return tally


def hang_up(url: str, items: int, random: Random) -> int:
    """Send a good request, and be gone before the answer is there."""
    tensors = {
        wire.IMAGES: np.zeros((items, 8, 8, 3), np.uint8),
        wire.PROMPTS: wire.bytes_tensor(["a"] * items),
    }
    chunks, length = wire.encode({}, tensors, key="inputs")
    try:
        httpx.post(
            f"{url}/v2/models/{REWARD}/infer",
            content=b"".join(chunks),
            headers={wire.HEADER: str(length)},
            timeout=random.uniform(0.005, 0.05),
            trust_env=False,
        )
    except httpx.HTTPError:
        return 1
    return 0


def main(items: int = 10_000, clients: int = 16, kills: int = 5) -> None:
    spawn = multiprocessing.get_context("spawn")
    share = items // clients
    with running(fakes()) as server, spawn.Manager() as manager:
        counters = [manager.Value("i", 0) for _ in range(clients)]
        started = time.monotonic()
        with ProcessPoolExecutor(clients, mp_context=spawn) as pool:
            futures = [
                pool.submit(client_run, server.url, k * share, share, k, counters[k]) for k in range(clients)
            ]
            killer = threading.Thread(
                target=kill_at, args=(server, list(marks(share * clients, kills)), counters)
            )
            killer.start()
            tallies = [future.result() for future in futures]
            killer.join()
        spent = time.monotonic() - started
        with httpx.Client(base_url=server.url, trust_env=False) as http:
            waiting = queued(http)
    total = {
        "items": share * clients,
        "clients": clients,
        "kills": kills,
        "seconds": round(spent, 1),
        **{
            name: sum(getattr(t, name) for t in tallies)
            for name in ("good", "poisoned", "wrong", "missing", "poison_scored", "hung_up")
        },
        "call_errors": [error for tally in tallies for error in tally.call_errors],
        "queued_at_the_end": waiting,
    }
    report("faults", [total], poison_every=POISON_EVERY, hang_up_share=HANG_UP_SHARE)
    expected = sum(n % POISON_EVERY == 7 for n in range(share * clients))
    if (total["good"], total["poisoned"]) != (share * clients - expected, expected):
        raise SystemExit("items were lost, see the report")


def marks(items: int, kills: int) -> Iterator[int]:
    """At how many finished items the server is killed."""
    return (items * (k + 1) // (kills + 1) for k in range(kills))


def kill_at(server: Server, when: list[int], counters: list[ValueProxy[int]]) -> None:
    for mark in when:
        while sum(counter.get() for counter in counters) < mark:
            time.sleep(0.05)
        server.kill()
        console.print(f"killed at {mark} items", highlight=False)
        time.sleep(0.5)
        server.start()
        server.wait_ready()


def queued(http: httpx.Client) -> float:
    """Items that wait at the server, of all rewards, from its metrics."""
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("rewardzoo_queued_items"))
