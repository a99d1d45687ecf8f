"""What the tests of deploy/ share: real servers with a mini, and their ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from rewardzoo import RewardClient
from rewardzoo.trainers.lab import triples

ROOT = Path(__file__).parents[2]
REWARD = "hpsv2:mini"


@dataclass(frozen=True)
class Process:
    """A process, and what it and its children wrote."""

    popen: subprocess.Popen[bytes]
    log: Path

    def end(self, how: int = signal.SIGKILL) -> None:
        """End it; where it cannot see to its children itself, end these too."""
        if self.popen.poll() is None:
            process = psutil.Process(self.popen.pid)
            # BentoML's workers are in sessions of their own: they outlive a killed group, and keep the port.
            children = process.children(recursive=True)
            process.send_signal(how)
            self.popen.wait(timeout=30)
            if how == signal.SIGKILL:
                for child in children:
                    with suppress(psutil.NoSuchProcess):
                        child.kill()
                psutil.wait_procs(children, timeout=30)


Start = Callable[..., Process]


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start processes that do not outlive the test."""
    started: list[Process] = []

    def start(
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        *,
        inherit: bool = True,
        **options: Any,
    ) -> Process:
        log = tmp_path / f"{len(started)}.log"
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [*map(str, command)],
                env={**(os.environ if inherit else {}), **(environment or {})},
                cwd=cwd,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                **options,
            )
        started.append(Process(popen, log))
        return started[-1]

    yield start
    for process in started:
        process.end()


@pytest.fixture
def start_server(start: Start) -> Callable[[int], Process]:
    """Start `rewardzoo serve` with the mini on a port, and return at once."""
    command = [sys.executable, "-m", "rewardzoo", "serve", REWARD, "--device", "cpu", "--port"]
    return lambda port: start([*command, str(port)])


@pytest.fixture
def pairs() -> tuple[list[np.ndarray], list[str]]:
    found = list(triples(16, seed=11))
    return [im for t in found for im in (t.right, t.wrong)], [t.prompt for t in found for _ in range(2)]


@pytest.fixture
def wait_ready() -> Callable[[str, Process], None]:
    """Wait for a server, and show its log where it does not come."""

    def wait(url: str, process: Process) -> None:
        with RewardClient(url) as client:
            try:
                client.wait_ready(180)
            except Exception as error:
                raise AssertionError(process.log.read_text(errors="replace")[-4000:]) from error

    return wait
