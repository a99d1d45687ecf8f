"""What a training lives in: devices, optimizer, checkpoints, signals, and what is written down of it.

    with Run(config, "grpo", load_policy(config.policy)) as run:
        for step in run.steps():
            images = run.rollout(run.take(16), group_size=8)
            ...
            run.log(metrics)

A training that is interrupted by a signal, or loses its rewards, leaves a checkpoint of the last step done,
and goes on from there to the same weights as one that was not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, gather_object, set_seed
from torch import Tensor, nn

from rewardzoo.clients.compare.overoptimization import OveroptimizationAlarm
from rewardzoo.trainers.checkpoints import CONFIG, Checkpoints, open_folder, step_of
from rewardzoo.trainers.config import Config, dump
from rewardzoo.trainers.critic.refresh import Refresh
from rewardzoo.trainers.evaluation import evaluate
from rewardzoo.trainers.optimizer import make_optimizer, trained_of
from rewardzoo.trainers.policies.policy import ARImagePolicy
from rewardzoo.trainers.prompts import Prompt, PromptOrder, load_prompts
from rewardzoo.trainers.rewards import Rewards, RewardsLostError, StopAskedError
from rewardzoo.trainers.rollout import Images, rollout
from rewardzoo.trainers.sharding import prepare_reference, ready_to_sample, whole
from rewardzoo.trainers.stopping import StopSignal
from rewardzoo.trainers.tracking import Tracking

logger = logging.getLogger(__name__)
T = TypeVar("T")
# How much longer than the wait for rewards a collective may take: a step, an evaluation, a checkpoint.
_COLLECTIVE = timedelta(hours=1)


class Run(Generic[Config]):
    """One training, of which there is one in each process.

    `policy` is the model itself, `model` what wraps it for several processes: sample with the one, and take
    gradients through the other. `step` is how many steps are done.

    Raises:
        ValueError: the folder holds a run that must not be gone on with, or of another kind.
    """

    def __init__(self, config: Config, algorithm: str, policy: ARImagePolicy) -> None:
        self.config = config
        self.policy = policy
        self.step = 0
        self.exit_code = 0
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        self.accelerator = Accelerator(
            mixed_precision=config.policy.mixed_precision,
            log_with=list(config.run.trackers) or None,
            project_dir=str(config.run.out),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=_COLLECTIVE + timedelta(seconds=config.rewards.timeout))
            ],
        )
        set_seed(config.run.seed, device_specific=True)
        self._checkpoints = Checkpoints(config.run.out / "checkpoints", config.run.keep, self.accelerator)
        self._resumed = open_folder(config, algorithm, self._checkpoints, self.accelerator)
        self._stop = StopSignal()
        self._metrics: dict[str, float] = {}
        self._position = 0
        self._evaluated = -1
        self.prompts = PromptOrder(load_prompts(config.prompts), config.run.seed)
        self._sets = {name: load_prompts(each) for name, each in config.evaluation.sets.items()}
        held_out = [f"judge/{name}" for name in config.rewards.held_out]
        self._alarm = OveroptimizationAlarm(judges=held_out)
        self.critic = Refresh(self, config.critic) if config.critic else None
        own = self.critic.name if self.critic else None
        self.rewards = Rewards(config.rewards, stop=lambda: bool(self._stop), own=own)
        self.optimizer, self._schedule = make_optimizer(
            config.optimizer, trained_of(_module(policy)), config.run.steps
        )
        # A sharded policy cannot be copied any more.
        self._reference = policy.reference() if self._sharded else None
        self.model, self.optimizer = self.accelerator.prepare(_module(policy), self.optimizer)
        self.trained = trained_of(self.model)  # others than before, where it is sharded
        self.model.train()  # layers are recomputed in the backward pass in this mode alone
        ready_to_sample(self.model)
        self.policy = self.accelerator.unwrap_model(self.model)
        for stateful in (self._schedule, _State(self), self.critic):
            if stateful is not None:
                self.accelerator.register_for_checkpointing(stateful)

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return int(self.accelerator.num_processes)

    def reference(self) -> nn.Module:
        """Return the policy as it is now, frozen; ask before `steps`, which may load a checkpoint."""
        reference, self._reference = self._reference, None
        return prepare_reference(self.accelerator, reference or self.policy.reference())

    def keep(self, stateful: Any) -> None:
        """Save what has `state_dict` and `load_state_dict` with each checkpoint; say so before `steps`."""
        self.accelerator.register_for_checkpointing(stateful)

    def steps(self) -> Iterator[int]:
        """Yield the number of each step that is to be done, from 1; after it, evaluate, log and save.

        Ends early where a signal asks for it; `exit_code` is then 128 and the signal's number.
        """
        self._begin()
        last = self.config.run.steps
        while True:
            self._finish_step()
            if self.step >= last or self._stopping():
                break
            began = time.monotonic()
            self._metrics, self._position = {}, self.prompts.position
            if self.critic:
                self.log(self.critic.refresh_if_due())
            yield self.step + 1
            self.step += 1
            self._position = self.prompts.position
            self._metrics["seconds"] = time.monotonic() - began
        self._save()
        if self.step >= last:
            self.export(self.config.run.out / "policy")

    def take(self, count: int) -> list[Prompt]:
        """Return the next prompts of the training, the same in all processes; a whole number for each."""
        return self.prompts.take(count)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of items that all processes have: a run of consecutive ones.

        Raises:
            ValueError: they cannot be shared equally.
        """
        size, rest = divmod(len(items), self.processes)
        if rest:
            raise ValueError(f"{len(items)} cannot be shared equally by {self.processes} processes")
        start = size * self.accelerator.process_index
        return items[start : start + size]

    def rollout(self, prompts: Sequence[Prompt], group_size: int, *, score: bool = True) -> Images:
        """Sample `group_size` images for each of P prompts, this process those of its share of the prompts.

        Each batch of images is decoded and, unless `score` is false, its scoring has begun before the next is
        sampled. What is drawn follows from the seed, the step, and the image's place in the global step.
        """
        return rollout(self, prompts, group_size, (0, self.step), score=score)

    def update(self, count: int, loss_of: Callable[[slice], Tensor]) -> dict[str, float]:
        """Take one optimizer step over this process's `count` items, the same count in all.

        `loss_of` gives the loss of a slice of them, as a part of the global batch's: the losses of all slices
        of all processes add up to it.
        """
        size = self.config.optimizer.micro_batch_size
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            is_last = rows.stop == count
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                # Gradients are averaged over processes.
                self.accelerator.backward(loss_of(rows) * self.processes)
        norm = whole(self.accelerator.clip_grad_norm_(self.trained, self.config.optimizer.max_grad_norm))
        lr = float(self._schedule.get_last_lr()[0])
        if np.isfinite(norm):
            self.optimizer.step()
        else:
            logger.warning(
                "step %d: the gradient's norm is %s, so this update is left out", self.step + 1, norm
            )
        self.optimizer.zero_grad()
        self._schedule.step()
        return {"grad_norm": norm, "lr": lr}

    def total(self, sums: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Add numbers up over all processes."""
        flat = torch.stack([torch.as_tensor(value, dtype=torch.float64).cpu() for value in sums.values()])
        # Gathered rather than reduced, so that the order of the additions is the same everywhere.
        everyone: list[Tensor] = gather_object([flat])
        return dict(zip(sums, torch.stack(everyone).sum(0).tolist(), strict=True))

    def checkpoint(self) -> None:
        """Save within a step that will take long, before it takes prompts; of the first there is no need."""
        if self.step:
            self._save()

    def stop_if_asked(self) -> None:
        """Raise `StopAskedError` in all processes where one was asked to stop; for steps that take long."""
        if self._stopping():
            raise StopAskedError("asked to stop")

    def log(self, metrics: Mapping[str, float]) -> None:
        """Add to what is written down of this step."""
        self._metrics.update(metrics)

    def grid_due(self) -> bool:
        """Whether this step's samples are to be drawn."""
        return (self.step + 1) % self.config.run.grid_every == 0 or self.step == 0

    def __enter__(self) -> Self:
        self._stop.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            # All processes raise these together, so that all of them save.
            if isinstance(error, RewardsLostError | StopAskedError) and self._begun:
                self.prompts.position = self._position
                self._save()
                self.tracking.say(f"{error}; checkpoint of step {self.step} is in {self._checkpoints.folder}")
        finally:
            self._stop.end()
            self.rewards.close()
            if self._begun:
                self.tracking.close()
        if isinstance(error, StopAskedError):
            self.exit_code = 128 + (self._stop.number or signal.SIGTERM)
            return True
        return False

    _begun = False

    def _begin(self) -> None:
        """Wait for the rewards, load the checkpoint that there is, and open what is written to."""
        self.rewards.check()
        if self._resumed:
            self.accelerator.load_state(str(self._resumed))
            if self.step != step_of(self._resumed):
                raise ValueError(
                    f"{self._resumed} is of step {self.step}: it was renamed or is another run's"
                )
        if self.critic:
            self.critic.host()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (self.config.run.out / CONFIG).write_text(dump(self.config))
        self.tracking = Tracking(self.accelerator, self.config, start=self.step)
        self._position = self.prompts.position
        self._begun = True
        if self._resumed:
            self.tracking.say(f"goes on from {self._resumed}")

    def _finish_step(self) -> None:
        """Evaluate where it is due, write down what is known of this step, and save where that is due."""
        every, last = self.config.evaluation.every, self.config.run.steps
        try:
            due = self.step % every == 0 or self.step >= last
            if due and self._evaluated != self.step and self._sets:
                began = time.monotonic()
                for name, prompts in self._sets.items():
                    self._metrics |= evaluate(self, name, prompts, self.config.evaluation.images_per_prompt)
                self._metrics["seconds/eval"] = time.monotonic() - began
                self._evaluated = self.step
        finally:
            if self._metrics:
                self._note_shares()
                self.tracking.log(self.step, self._metrics)
                if alarm := self._alarm.update(self.step, self._metrics):
                    self.tracking.say(f"over-optimised? {alarm}")
                self._write_provenance()
                self._metrics = {}
        if self.step and self.step % self.config.run.save_every == 0:
            self._save()

    def _note_shares(self) -> None:
        seconds = self._metrics.get("seconds")
        if seconds and "seconds/wait" in self._metrics:
            self._metrics["wait_share"] = self._metrics["seconds/wait"] / seconds

    def _write_provenance(self) -> None:
        if self.accelerator.is_main_process and self.rewards.provenance:
            text = json.dumps(self.rewards.provenance, indent=1, default=str)
            (self.config.run.out / "provenance.json").write_text(text + "\n")

    def _save(self) -> None:
        self._checkpoints.save(self.step, lambda folder: self.accelerator.save_state(str(folder)))

    def export(self, folder: Path) -> None:
        """Write the policy as it is, for `load`; all processes must call it."""
        gathered = {"state_dict": self.accelerator.get_state_dict(self.model)} if self._sharded else {}
        if self.accelerator.is_main_process:
            self.policy.save(folder, **gathered)
        self.accelerator.wait_for_everyone()

    @property
    def _sharded(self) -> bool:
        return bool(self.accelerator.distributed_type == DistributedType.FSDP)

    def _stopping(self) -> bool:
        """Whether any process was asked to stop; all must call it."""
        found = [number for number in gather_object([self._stop.number]) if number]
        if found:
            self.exit_code = 128 + found[0]
            self.tracking.say(f"stopped by {signal.Signals(found[0]).name} after step {self.step}")
        return bool(found)


class _State:
    """What of a run is not in its models and optimizer."""

    def __init__(self, run: Run[Any]) -> None:
        self._run = run

    def state_dict(self) -> dict[str, Any]:
        run = self._run
        return {
            "step": run.step,
            "evaluated": run._evaluated,
            "prompts": run.prompts.state_dict(),
            "rewards": run.rewards.state_dict(),
            "alarm": run._alarm.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        run = self._run
        run.step, run._evaluated = state["step"], state["evaluated"]
        run.prompts.load_state_dict(state["prompts"])
        run.rewards.load_state_dict(state["rewards"])
        run._alarm.load_state_dict(state["alarm"])


def _module(policy: ARImagePolicy) -> nn.Module:
    if not isinstance(policy, nn.Module):
        raise ValueError(f"a policy must be an nn.Module, got {type(policy).__name__}")
    return policy
