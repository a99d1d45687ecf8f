"""Train the mini rewards that ship in the package: `python -m rewardzoo.trainers.lab.train_minis [NAME…]`.

Each is trained as its big sister was, at a size for two CPU cores. A pair here is two scenes one attribute
apart, each with its prompt and picture: each picture is the better one under its own prompt, so every pair
teaches both ways round. In place of the big models' pre-training, some are also taught what is where
(`SceneProbe`), and the others start from what those have learned.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

import rewardzoo.rewards
from rewardzoo.trainers.lab.blip_minis import train_blipvqa, train_imagereward
from rewardzoo.trainers.lab.clip_minis import train_clipscore, train_hpsv2, train_pickscore
from rewardzoo.trainers.lab.qwen_minis import train_hpsv3
from rewardzoo.trainers.lab.t5_minis import train_vqascore
from rewardzoo.trainers.lab.training import OUT, preference_accuracy


class Schedule(NamedTuple):
    """How a mini is trained: `train(folder, steps, pairs, seed)`, so many pairs in a batch."""

    train: Callable[[Path, int, int, int], None]
    steps: int
    pairs: int = 32
    seed: int = 0


SCHEDULES = {
    "hpsv2": Schedule(train_hpsv2, steps=3200),
    "clipscore": Schedule(train_clipscore, steps=200, seed=100),
    "pickscore": Schedule(train_pickscore, steps=200, seed=100),
    "imagereward": Schedule(train_imagereward, steps=2300, pairs=16),
    "blipvqa": Schedule(train_blipvqa, steps=1600, pairs=16),
    "hpsv3": Schedule(train_hpsv3, steps=3600, pairs=16),
    "vqascore": Schedule(train_vqascore, steps=3600, pairs=16),
}
"""In an order in which each finds what it starts from."""


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which minis; all by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to, one folder a reward.")] = OUT,
    steps: Annotated[int | None, typer.Option(help="Steps, instead of the shipped schedule.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Pairs in a batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the weights and the scenes.")] = None,
) -> None:
    """Train the mini rewards and print how often each prefers the right picture."""
    for name in names or SCHEDULES:
        if name not in SCHEDULES:
            raise typer.BadParameter(f"no mini {name!r}: there are {', '.join(SCHEDULES)}")
        schedule = SCHEDULES[name]
        start = schedule.seed if seed is None else seed
        torch.manual_seed(start)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        schedule.train(folder, steps or schedule.steps, pairs or schedule.pairs, start)
        model = rewardzoo.rewards.load(f"{name}:mini", device="cpu", weights=folder)
        shares = preference_accuracy(model, 1000, seed=10_000 + start)
        print(name, {kind: round(share, 3) for kind, share in shares.items()}, flush=True)


if __name__ == "__main__":
    typer.run(main)
