"""A run's folder, and the checkpoints in it: whole or not there, the newest few kept."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from rewardzoo.trainers.config import TrainConfig, dump

logger = logging.getLogger(__name__)
CONFIG = "config.yaml"
_NOTE = "run.json"
_NAME = re.compile(r"step-(\d{6,})")


class Checkpoints:
    """Folders `step-000100` in `folder`, of which the newest `keep` stay.

    A checkpoint is written beside and renamed once all processes are done with it, so that a process killed
    at any time leaves the last one as it was.
    """

    def __init__(self, folder: Path, keep: int, accelerator: Accelerator) -> None:
        self.folder, self._keep, self._accelerator = folder, keep, accelerator

    def newest(self) -> Path | None:
        """Return the newest checkpoint; every process must ask before any writes."""
        found = self._all()
        return found[-1] if found else None

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Have every process `write` its state of a step into a folder; one that is there is kept."""
        final = self.folder / f"step-{step:06d}"
        there = final.exists()
        self._accelerator.wait_for_everyone()
        if there:
            return final
        beside = self.folder / f".step-{step:06d}"
        if self._accelerator.is_main_process:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        self._accelerator.wait_for_everyone()
        write(beside)
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            beside.rename(final)
            for old in self._all()[: -self._keep]:
                shutil.rmtree(old, ignore_errors=True)
        self._accelerator.wait_for_everyone()
        return final

    def _all(self) -> list[Path]:
        found = self.folder.iterdir() if self.folder.is_dir() else iter(())
        return sorted((p for p in found if _NAME.fullmatch(p.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step a checkpoint is of."""
    return int(checkpoint.name.removeprefix("step-"))


def open_folder(
    config: TrainConfig, algorithm: str, checkpoints: Checkpoints, accelerator: Accelerator
) -> Path | None:
    """Make the run's folder, or see that the run in it may go on; return the checkpoint to go on from.

    Settings that differ from those of the run that wrote it are logged.

    Raises:
        ValueError: there is a run of another algorithm, or one where `resume` is `never`.
    """
    out, found = config.run.out, checkpoints.newest()
    note, before = out / _NOTE, out / CONFIG
    if (found or note.exists()) and config.run.resume == "never":
        raise ValueError(f"run.out: {out} holds a run already: say run.resume=auto, or another folder")
    if note.exists() and (other := json.loads(note.read_text())["algorithm"]) != algorithm:
        raise ValueError(f"run.out: {out} holds a run of {other}, this is one of {algorithm}")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"algorithm": algorithm}) + "\n")
        if found and before.exists():
            old = before.read_text().splitlines()
            if changed := [line.strip() for line in dump(config).splitlines() if line not in old]:
                logger.warning("goes on with other settings than it began with: %s", "; ".join(changed))
    return found
