"""The loop that teaches a reward: batches by seed, validation, early stopping, checkpoints to go on from."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, gather_object, set_seed
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import get_scheduler

from rewardzoo.trainers.checkpoints import Checkpoints
from rewardzoo.trainers.critic.config import CriticConfig
from rewardzoo.trainers.critic.tasks import Rows, Task

logger = logging.getLogger(__name__)
_BEST = "best.safetensors"
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


class Fit:
    """One training of a task on rows, validated on others.

    What is drawn follows from the seed and the step alone, so one that was killed goes on from its newest
    checkpoint to the same weights.
    """

    def __init__(self, config: CriticConfig, task: Task, rows: Rows, held: Rows) -> None:
        run, settings = config.run, config.optimizer
        if len(rows) < run.batch_size:
            raise ValueError(f"there are {len(rows)} rows to learn from, a batch is {run.batch_size}")
        self.config, self.rows, self.held = config, rows, held
        self.step, self.bad, self.best = 0, 0, math.inf
        self.accelerator = Accelerator(
            mixed_precision=config.model.mixed_precision,
            log_with=list(run.trackers) or None,
            project_dir=str(run.out),
            # Some weights have no gradient: a cosine's temperature, the last layer of LLaVA's tower.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        if self.accelerator.distributed_type in _SHARDED:
            raise ValueError(
                "critics are trained with a whole model in each process, not with "
                f"{self.accelerator.distributed_type.value}: launch with accelerate_ddp.yaml, and for 7B "
                "take adapters, model.lora={rank: 16} model.dtype=bfloat16"
            )
        if run.batch_size % self.accelerator.num_processes:
            raise ValueError(
                f"run.batch_size: {self.accelerator.num_processes} processes cannot share {run.batch_size}"
            )
        set_seed(run.seed, device_specific=True)
        self.steps = max(1, round(run.epochs * len(rows) / run.batch_size))
        self.trained = [p for p in task.net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            self.trained,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        self.schedule = get_scheduler(
            settings.schedule,
            optimizer,
            num_warmup_steps=settings.warmup_steps,
            num_training_steps=self.steps,
        )
        self.model, self.optimizer = self.accelerator.prepare(task, optimizer)
        self.task: Task = self.accelerator.unwrap_model(self.model)
        self.accelerator.register_for_checkpointing(self.schedule, self)
        self._checkpoints = Checkpoints(run.out / "checkpoints", run.keep, self.accelerator)

    def state_dict(self) -> dict[str, Any]:
        """Return where it is, for a checkpoint."""
        return {"step": self.step, "bad": self.bad, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.step, self.bad, self.best = state["step"], state["bad"], state["best"]

    def run(self) -> dict[str, float]:
        """Train until the end, or until it no longer gets better; the best weights are then in the task."""
        run = self.config.run
        if newest := self._checkpoints.newest():
            if run.resume == "never":
                raise ValueError(
                    f"run.out: {run.out} holds a training: say run.resume=auto, or another folder"
                )
            self.accelerator.load_state(str(newest))
        began, computed, first = time.monotonic(), time.process_time(), self.step
        if run.trackers:
            self.accelerator.init_trackers(run.project)
        with self._progress() as bar:
            line = bar.add_task("", total=self.steps, completed=self.step, said="")
            for inputs in self._batches():
                loss = self._learn(inputs)
                self.step += 1
                bar.update(line, completed=self.step, said=f"loss {loss:.3f}, best {self.best:.3f}")
                self.accelerator.log({"loss": loss}, step=self.step)
                if self.step % run.validate_every == 0 or self.step == self.steps:
                    self._validate()
                if self.step % run.save_every == 0 or self.step == self.steps or self._is_over:
                    self._checkpoints.save(self.step, self._save_state)
                if self._is_over:
                    break
        if run.trackers:
            self.accelerator.end_training()
        self._take_best()
        return {
            "steps": self.step,
            "validation_loss": self.best,
            "seconds": time.monotonic() - began,
            "cpu_seconds": time.process_time() - computed,
            "steps_now": self.step - first,
        }

    @torch.no_grad()
    def predict(self, rows: Rows) -> tuple[list[float], list[float]]:
        """Return what the task says of each row, and its loss: in the rows' order, in every process."""
        self.model.eval()
        own = range(self.accelerator.process_index, len(rows), self.accelerator.num_processes)
        size = self.config.optimizer.micro_batch_size
        found: list[tuple[int, float, float]] = []
        for start in range(0, len(own), size):
            places = own[start : start + size]
            inputs = self._to_device(self.task.batch([rows[i] for i in places]))
            said = self.task.predict(inputs).float().tolist()
            losses = self.task(inputs).float().tolist()
            found += zip(places, said, losses, strict=True)
        everyone: list[tuple[int, float, float]] = sorted(gather_object(found))
        return [said for _, said, _ in everyone], [loss for _, _, loss in everyone]

    @property
    def _is_over(self) -> bool:
        return self.step >= self.steps or self.bad >= self.config.run.patience

    def _learn(self, parts: Sequence[dict[str, Tensor]]) -> float:
        """Take a step over this process's share of a batch, part by part; return the batch's mean loss."""
        self.model.train()
        total = self.config.run.batch_size
        summed = torch.zeros((), device=self.accelerator.device)
        for i, part in enumerate(parts):
            is_last = i + 1 == len(parts)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                losses = self.model(self._to_device(part))
                # Gradients are averaged over processes.
                self.accelerator.backward(losses.sum() / total * self.accelerator.num_processes)
            summed += losses.detach().sum()
        norm = float(self.accelerator.clip_grad_norm_(self.trained, self.config.optimizer.max_grad_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        else:
            logger.warning("step %d: the gradient's norm is %s: this update is left out", self.step + 1, norm)
        self.optimizer.zero_grad()
        self.schedule.step()
        return float(self.accelerator.reduce(summed, "sum")) / total

    def _validate(self) -> None:
        loss = float(np.mean(self.predict(self.held)[1]))
        self.accelerator.log({"validation_loss": loss}, step=self.step)
        logger.info("step %d: validation loss %.4f, best %.4f", self.step, loss, self.best)
        if loss < self.best:
            self.best, self.bad = loss, 0
            if self.accelerator.is_main_process:
                path = self._best_path
                path.parent.mkdir(parents=True, exist_ok=True)
                beside = path.with_name(f".{path.name}")
                state = self.accelerator.get_state_dict(self.model)
                save_file({k: w.contiguous().clone() for k, w in state.items()}, beside)
                beside.replace(path)
        else:
            self.bad += 1
        self.accelerator.wait_for_everyone()

    def _take_best(self) -> None:
        """Put the weights that validated best back."""
        if self._best_path.exists():
            self.task.load_state_dict(load_file(self._best_path))
        self.model.eval()

    @property
    def _best_path(self) -> Path:
        return self.config.run.out / "checkpoints" / _BEST

    def _batches(self) -> Iterator[list[dict[str, Tensor]]]:
        """This process's share of the batches that are left, in parts, prepared by the loader's workers."""
        steps = _Steps(self.task, self.rows, self.config, self.accelerator)
        left = range(self.step, self.steps)
        return iter(DataLoader(steps, batch_size=None, sampler=left, num_workers=self.config.run.workers))

    def _to_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.accelerator.device) for name, tensor in inputs.items()}

    def _save_state(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder))

    def _progress(self) -> Progress:
        console = Console(stderr=True)
        return Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (self.accelerator.is_main_process and console.is_terminal),
        )


class _Steps(Dataset[list[dict[str, Tensor]]]):
    """The batch of each step, of which this process takes its share: rows in an order of each epoch's own."""

    def __init__(self, task: Task, rows: Rows, config: CriticConfig, accelerator: Accelerator) -> None:
        self._task, self._rows, self._run = task, rows, config.run
        self._size = config.optimizer.micro_batch_size
        self._share = slice(accelerator.process_index, None, accelerator.num_processes)

    def __getitem__(self, step: int) -> list[dict[str, Tensor]]:
        size = self._run.batch_size
        places = range(step * size, (step + 1) * size)[self._share]
        rows = [self._rows[self._at(place)] for place in places]
        return [self._task.batch(rows[i : i + self._size]) for i in range(0, len(rows), self._size)]

    def _at(self, place: int) -> int:
        epoch, row = divmod(place, len(self._rows))
        return int(_order(self._run.seed, epoch, len(self._rows))[row])


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
