"""What is written down of a run: `metrics.jsonl`, the trackers, sample grids, and the line on the screen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rewardzoo.errors import require
from rewardzoo.trainers.config import TrainConfig
from rewardzoo.trainers.grids import Sample, draw_grid

METRICS = "metrics.jsonl"
_SHOWN = ("loss", "reward", "kl", "accuracy", "wait_share")


class Tracking:
    """Writes a run down, in the main process alone; in the others every call does nothing.

    `metrics.jsonl` has one object a step, whose keys are `step` and the metrics of `log`. A run that goes on
    from step k forgets the lines after k, which it will write again.
    """

    def __init__(self, accelerator: Accelerator, config: TrainConfig, *, start: int) -> None:
        self._accelerator = accelerator
        self._main = accelerator.is_main_process
        self._folder = config.run.out
        self._every, self._last = config.run.log_every, config.run.steps
        if "tensorboard" in config.run.trackers:
            require("tensorboard", extra="train")
        if "wandb" in config.run.trackers and find_spec("wandb") is None:
            raise ValueError("run.trackers: wandb is not installed: pip install wandb")
        if config.run.trackers:
            options = {"tensorboard": {"purge_step": start + 1}} if start else {}
            accelerator.init_trackers(config.run.project, init_kwargs=options)
        if self._main:
            _cut(self._folder / METRICS, start)
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (self._main and self._console.is_terminal),
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=config.run.steps, completed=start, said="")

    def say(self, text: str) -> None:
        """Print a line."""
        if self._main:
            self._bar.console.print(text, markup=False)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step down, everywhere."""
        if not self._main:
            return
        found = {name: _number(value) for name, value in metrics.items()}
        with (self._folder / METRICS).open("a") as file:
            file.write(json.dumps({"step": step, **found}) + "\n")
        finite = {name: value for name, value in found.items() if value is not None}
        self._accelerator.log(finite, step=step)
        said = " ".join(f"{name} {finite[name]:.3g}" for name in _SHOWN if name in finite)
        self._bar.update(self._task, completed=step, said=said)
        due = step % self._every == 0 or step == self._last
        if said and due and not self._console.is_terminal:
            self._console.print(f"step {step}/{self._last} {said}", markup=False)
        if judged := {name: v for name, v in finite.items() if name.startswith("eval/")}:
            self.say(f"step {step}: " + " ".join(f"{name[5:]} {v:.4g}" for name, v in judged.items()))

    def grid(self, step: int, name: str, samples: Sequence[Sample]) -> None:
        """Draw a grid to `grids/NAME-STEP.png` and to the trackers."""
        if not (self._main and samples):
            return
        picture = draw_grid(samples)
        folder = self._folder / "grids"
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{name}-{step:06d}.png")
        pixels = np.asarray(picture)[None]
        for tracker in self._accelerator.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({f"samples/{name}": pixels}, step=step, **options)

    def close(self) -> None:
        """End the trackers and the progress bar."""
        self._bar.stop()
        self._accelerator.end_training()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`, one mapping a step."""
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def _cut(path: Path, start: int) -> None:
    """Drop the lines of steps after `start`, and a last line that was not written to its end."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        # Step 0 is evaluated anew by a run that begins anew.
        if row["step"] <= start and start:
            kept.append(line)
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(line + "\n" for line in kept))
    beside.replace(path)


def _number(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None
