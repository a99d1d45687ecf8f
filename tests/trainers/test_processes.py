"""Trainings in processes of their own: killed, several at a time, and before a real reward server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from rewardzoo import RewardClient
from rewardzoo.trainers.tracking import read_metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
DRIVER = ("-m", "tests.trainers.driver")
TWO = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "{port}")
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(config_file: Path, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Start]:
    """Start the tiny training in `out`, its output in `out.log`."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(
        out: str, *overrides: str, launcher: Sequence[str] = (), lost: tuple[int, int] | None = None
    ) -> subprocess.Popen[bytes]:
        settings = [f"run.out={tmp_path / out}", *overrides]
        before = [part.format(port=free_port()) for part in launcher]
        command = [sys.executable, *before, *DRIVER, str(config_file), *settings]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
        if lost:
            environment |= {"LOST_BY": str(lost[0]), "LOST_AT": str(lost[1])}
        with (tmp_path / f"{out}.log").open("ab") as log:
            begun.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def server(port: int) -> Iterator[None]:
    command = [
        sys.executable,
        "-m",
        "rewardzoo",
        "serve",
        "hpsv2:mini",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with RewardClient(f"http://127.0.0.1:{port}") as client:
            client.wait_ready(300)
        yield
    finally:
        everyone = [*process.children(recursive=True), process]
        for each in everyone:
            each.kill()
        psutil.wait_procs(everyone, timeout=30)


def wait_for_step(folder: Path, step: int) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if (folder / "metrics.jsonl").exists() and read_metrics(folder)[-1:] and steps(folder)[-1] >= step:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{folder} did not reach step {step}")


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in read_metrics(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "policy" / "weights.pt", weights_only=True)
    return found


def finish(process: subprocess.Popen[bytes], log: Path) -> int:
    code = process.wait(400)
    print(log.read_text())
    return code


def test_killed_and_started_again_it_reaches_the_weights_of_a_run_that_was_not(start, tmp_path: Path) -> None:
    whole = start("whole", "run.steps=30")
    killed = start("killed", "run.steps=30", "run.save_every=5")
    wait_for_step(tmp_path / "killed", 12)
    killed.kill()
    killed.wait()
    assert steps(tmp_path / "killed")[-1] < 30
    assert finish(start("killed", "run.steps=30", "run.save_every=5"), tmp_path / "killed.log") == 0
    assert finish(whole, tmp_path / "whole.log") == 0
    assert "goes on from" in (tmp_path / "killed.log").read_text()
    assert steps(tmp_path / "killed") == list(range(1, 31))
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(expected[name], value) for name, value in weights(tmp_path / "killed").items())


def test_two_processes_have_the_curves_of_one(start, tmp_path: Path) -> None:
    settings = (
        'rewards.normalize={"lab:exact-share": running_z}',
        "grpo.inner_epochs=2",
        "evaluation.every=5",
        'evaluation.sets={in_domain: {source: "lab:in_domain", count: 5}}',
        "run.steps=10",
    )
    assert finish(start("one", *settings), tmp_path / "one.log") == 0
    assert finish(start("two", *settings, launcher=TWO), tmp_path / "two.log") == 0
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert len(one) == len(two) == 11
    for line, other in zip(one, two, strict=True):
        for name in ("loss", "kl", "entropy", "grad_norm", "reward", "eval/in_domain/lab:exact-share"):
            assert line.get(name, 0) == pytest.approx(other.get(name, 0), abs=1e-4), (line["step"], name)
    torch.testing.assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"), atol=1e-4, rtol=1e-4)


def test_two_processes_that_are_asked_to_stop_save_and_go_on_as_one(start, tmp_path: Path) -> None:
    process = start("run", "run.steps=200", "run.save_every=1000", launcher=TWO)
    wait_for_step(tmp_path / "run", 5)
    process.send_signal(signal.SIGTERM)  # the launcher hands it on
    process.wait(60)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    reached = steps(tmp_path / "run")[-1]
    assert checkpoint.name == f"step-{reached:06d}"
    assert finish(start("run", f"run.steps={reached + 3}"), tmp_path / "run.log") == 0
    assert steps(tmp_path / "run") == list(range(1, reached + 4))


def served(port: int, timeout: float) -> tuple[str, ...]:
    return (
        f"rewards.url=http://127.0.0.1:{port}",
        'rewards.weights={"hpsv2:mini": 1}',
        "rewards.held_out=[lab:exact]",
        f"rewards.timeout={timeout}",
    )


def test_a_step_waits_for_a_server_that_restarts_and_gives_up_one_that_is_gone(
    start, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    endless = ("run.steps=100000", "run.save_every=100000")
    with server(port):
        process = start("run", *served(port, 300), *endless)
        wait_for_step(tmp_path / "run", 5)
    down = steps(tmp_path / "run")[-1]
    time.sleep(1)
    assert process.poll() is None
    with server(port):
        wait_for_step(tmp_path / "run", down + 5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        reached = steps(tmp_path / "run")[-1]
        process = start("run", *served(port, 4), *endless)
        wait_for_step(tmp_path / "run", reached + 3)
    assert finish(process, tmp_path / "run.log") == 75
    last = steps(tmp_path / "run")[-1]
    assert (tmp_path / "run" / "checkpoints" / f"step-{last:06d}").is_dir()
    assert "no rewards" in (tmp_path / "run.log").read_text()


def test_all_processes_save_and_end_where_one_of_them_gets_no_rewards(start, tmp_path: Path) -> None:
    process = start("run", 'rewards.weights={"served": 1}', "run.save_every=100", launcher=TWO, lost=(1, 4))
    assert finish(process, tmp_path / "run.log") == 1  # torchrun has an exit code of its own
    assert steps(tmp_path / "run") == [1, 2, 3]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]
    said = (tmp_path / "run.log").read_text()
    assert "process ends with 75" in said
    assert "no rewards (in 1 of 2 processes): gone from here" in said
