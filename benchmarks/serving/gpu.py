"""A GPU kept full: ViT-H/14 in bfloat16 on raw 384x384 pixels, served, beside the bare model there.

The bare rate is the model's on a batch that lies prepared: what the device can do and no more. The device's
idle share is the time in which no batch was on it while the clients asked, from the server's own metrics.
"""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import httpx
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.serving.harness import Server, console, report, running, seconds, zoo
from benchmarks.serving.served import full_size_hpsv2
from rewardzoo import RewardClient
from rewardzoo.rewards import RewardModel, load, pick_device

SIDE = 384
BATCH = 64


def main(
    device: str = "auto",
    dtype: str = "bfloat16",
    full: bool = True,
    items: int = 16_384,
    clients: int = 4,
    rounds: int = 20,
) -> None:
    """Measure; `full` is HPS v2.1 at its released size with random weights, else the mini."""
    place = pick_device(device)
    name = "hpsv2:v2.1" if full else "hpsv2:mini"
    with tempfile.TemporaryDirectory() as folder:
        weights = {name: str(full_size_hpsv2(Path(folder)))} if full else {}
        bare, whole = bare_rates(load_as(name, place, dtype, weights.get(name)), rounds)
        server = zoo(name, device=str(place), dtype=dtype, weights=json.dumps(weights), timeout=600)
        with running(server):
            ask(server.url, name, 2 * BATCH)  # warms up
            before = device_seconds(server)
            spawn = get_context("spawn")
            with ProcessPoolExecutor(clients, mp_context=spawn) as pool:
                list(pool.map(ready, range(clients)))  # processes start before the clock
                shares = [(server.url, name, items // clients)] * clients
                spent = seconds(lambda: list(pool.map(ask, *zip(*shares, strict=True))))
            busy = device_seconds(server) - before
    served = items // clients * clients / spent
    row = {
        "reward": name + (" (random weights)" if full else ""),
        "hardware": torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU",
        "dtype": dtype,
        "bare_images_per_second": bare,
        "bare_with_preparing_images_per_second": whole,
        "served_images_per_second": served,
        "served_over_bare": served / bare,
        "device_idle_share": 1 - busy / spent,
    }
    report("gpu", [row], side=SIDE, batch=BATCH, items=items, clients=clients)


def load_as(name: str, place: torch.device, dtype: str, weights: str | None) -> RewardModel:
    return load(name, device=str(place), dtype=getattr(torch, dtype), weights=weights)


def bare_rates(model: RewardModel, rounds: int) -> tuple[float, float]:
    """Images a second of the model on a prepared batch, and with preparing it in one thread."""
    images, prompts = pictures(BATCH), [f"a picture of {i} circles" for i in range(BATCH)]
    batch = model.prepare(images, prompts)
    model.run(batch)
    # A run ends with the scores on the host.
    spent = seconds(lambda: [model.run(batch) for _ in range(rounds)])
    few = max(1, rounds // 4)
    prepared = seconds(lambda: [model.run(model.prepare(images, prompts)) for _ in range(few)])
    return rounds * BATCH / spent, few * BATCH / prepared


def pictures(count: int) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))


def ready(_: int) -> None:
    pictures(1)


def ask(url: str, name: str, count: int) -> None:
    """Score so many raw images, a few requests at a time, and see that each has a score."""
    images, prompts = pictures(BATCH), [f"a picture of {i} circles" for i in range(BATCH)]
    with RewardClient(url, reward=name, timeout=600) as client:
        sizes = [min(BATCH, count - at) for at in range(0, count, BATCH)]
        futures = [client.submit(images[:n], prompts[:n]) for n in sizes]
        scored = sum(int(np.isfinite(future.result()).sum()) for future in futures)
    if scored != count:
        raise RuntimeError(f"{scored} of {count} images have a score")


def device_seconds(server: Server) -> float:
    """How long batches were on the server's device so far."""
    lines = httpx.get(f"{server.url}/metrics", trust_env=False).text.splitlines()
    sums = [float(line.split()[-1]) for line in lines if line.startswith("rewardzoo_device_seconds_sum")]
    console.print(f"device: {sum(sums):.2f} s", highlight=False)
    return sum(sums)
