"""Processes that are run a few at a time, each until it is done once."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rewardzoo.errors import RewardZooError
from rewardzoo.trainers.stopping import StopSignal

_GLANCE = 0.2
_PATIENCE = 60.0
_TAIL = 15


class StoppedError(RewardZooError):
    """A signal asked to stop; the jobs were asked, too. `exit_code` is 128 and its number."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped; the same command goes on where it was")
        self.exit_code = 128 + number


@dataclass(frozen=True)
class Job:
    """A command, asked for when it is to begin, which is when all that it `needs` is done."""

    name: str
    command: Callable[[], Sequence[str]]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """When a job began that ended well, and when it did, in seconds since 1970."""

    began: float
    ended: float


def run_jobs(
    folder: Path, jobs: Sequence[Job], processes: int, say: Callable[[str], None] = lambda text: None
) -> None:
    """Run jobs, `processes` at a time, one thread each. `folder` keeps their logs and which are done.

    A job that is done is not run again, one that broke off is: it must go on by itself, or begin anew.

    Raises:
        RewardZooError: a job failed; it has the end of its log. The others were ended by SIGTERM.
        StoppedError: SIGINT or SIGTERM came.
        ValueError: processes of an earlier call are still at it.
    """
    waiting = [job for job in jobs if done(folder, job.name) is None]
    finished = {job.name for job in jobs} - {job.name for job in waiting}
    running: dict[str, _Running] = {}
    stop = StopSignal()
    with _locked(folder) as lock:
        stop.listen()
        try:
            while waiting or running:
                if stop:
                    raise StoppedError(stop.number)
                ready = [job for job in waiting if finished.issuperset(job.needs)]
                while ready and len(running) < processes:
                    job = ready.pop(0)
                    waiting.remove(job)
                    running[job.name] = _Running(folder, job, lock)
                for name, each in list(running.items()):
                    if each.ended():
                        del running[name]
                        finished.add(name)
                        say(f"[{len(finished)}/{len(jobs)}] {name}: {each.seconds:.0f} s")
                time.sleep(_GLANCE)
        finally:
            for each in running.values():
                each.ask_to_stop()
            for each in running.values():
                each.wait()
                with suppress(RewardZooError):
                    each.ended()  # what was at its end anyway is done
            stop.end()


def done(folder: Path, name: str) -> Done | None:
    """Say when a job was done, None where it is not."""
    try:
        return Done(**json.loads(_file(folder, name, ".json").read_text()))
    except FileNotFoundError:
        return None


def spent(folder: Path, names: Sequence[str]) -> tuple[float, float]:
    """Return the seconds during which at least one of these jobs ran, and those of all jobs added up.

    Of a job that broke off, what it did before is not in it.
    """
    times = sorted((each.began, each.ended) for name in names if (each := done(folder, name)))
    covered, reached = 0.0, 0.0
    for began, ended in times:
        covered += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return covered, sum(ended - began for began, ended in times)


class _Running:
    """A job's process, in a group of its own: of a Ctrl-C it hears through `ask_to_stop` alone."""

    def __init__(self, folder: Path, job: Job, lock: IO[str]) -> None:
        self._folder, self._name, self._began = folder, job.name, time.time()
        command = list(job.command())
        self._log = _file(folder, job.name, ".log")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                process_group=0,
                pass_fds=[lock.fileno()],
            )
        self.seconds = 0.0

    def ended(self) -> bool:
        """Whether it ended well; it is noted then."""
        code = self._process.poll()
        if code is None:
            return False
        if code:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL:])
            raise RewardZooError(
                f"{self._name} ended with {code}; the end of {self._log}:\n{tail}\n"
                "Once that is mended, the same command goes on."
            )
        ended = time.time()
        self.seconds = ended - self._began
        path = _file(self._folder, self._name, ".json")
        fresh = path.with_suffix(".tmp")
        fresh.write_text(json.dumps({"began": self._began, "ended": ended}) + "\n")
        fresh.replace(path)
        return True

    def ask_to_stop(self) -> None:
        """Send SIGTERM, once, so that it can save where it is."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait for its end; what takes more than a minute is killed."""
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def _locked(folder: Path) -> Iterator[IO[str]]:
    """Hold the folder. Jobs inherit the lock, so that those of a call that was killed still hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"jobs of {folder} are still running: wait for them, or end them") from None
        yield file


def _file(folder: Path, name: str, ending: str) -> Path:
    return folder / f"{name}{ending}"
