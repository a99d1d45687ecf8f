"""(b) Served against bare: images a second through HTTP beside the same model called in its own process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving.harness import console, median, report, running, seconds, zoo
from rewardzoo import LocalRewards, RewardClient
from rewardzoo.rewards import hpsv2
from rewardzoo.trainers.lab import triples

BATCH = 32


def full_size_hpsv2(folder: Path) -> Path:
    """Write HPS v2.1 at its released size with random weights, as upstream saves it."""
    torch.manual_seed(0)
    file = folder / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": hpsv2.build({}).state_dict()}, file)
    return file


def main(rounds: int = 7, full: bool = True) -> None:
    rows = [compare(name, {}, rounds) for name in ("hpsv2:mini", "imagereward:mini")]
    if full:
        with tempfile.TemporaryDirectory() as folder:
            weights = {"hpsv2:v2.1": str(full_size_hpsv2(Path(folder)))}
            rows.append(compare("hpsv2:v2.1", weights, max(1, rounds // 3)))
    report("served", rows, batch=BATCH, rounds=rounds, statistic="median")


def compare(name: str, weights: dict[str, str], rounds: int) -> dict[str, Any]:
    """Bare and served in turn, so that what else the machine does falls on both alike."""
    found = list(triples(BATCH // 2, seed=1))
    images = [picture for triple in found for picture in (triple.right, triple.wrong)]
    prompts = [triple.prompt for triple in found for _ in range(2)]
    server = zoo(name, weights=json.dumps(weights), timeout=3000, window_ms=2)
    bare: list[float] = []
    served: list[float] = []
    with (
        running(server),
        LocalRewards([name], device="cpu", weights=weights or None) as local,
        RewardClient(server.url, timeout=3000) as client,
    ):
        ways: tuple[tuple[list[float], Callable[[], object]], ...] = (
            (bare, lambda: local.score(images, prompts)),
            (served, lambda: client.score(images, prompts, reward=name)),
        )
        for round_ in range(rounds + 1):
            for times, work in ways:
                spent = seconds(work)
                console.print(f"{name}: {spent:.3f} s", highlight=False)
                if round_:
                    times.append(spent)
    return {
        "calls": rounds,
        "reward": name + (" (random weights)" if weights else ""),
        "bare_images_per_second": BATCH / median(bare),
        "served_images_per_second": BATCH / median(served),
        "served_over_bare": median(bare) / median(served),
    }
