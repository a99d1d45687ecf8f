"""Processes a few at a time, and again after a stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewardzoo.errors import RewardZooError
from rewardzoo.trainers.lab.study.jobs import Job, StoppedError, done, run_jobs, spent


def job(folder: Path, name: str, script: str, needs: tuple[str, ...] = ()) -> Job:
    return Job(name, lambda: ["sh", "-c", f"cd {folder}; {script}"], needs)


def noted(folder: Path) -> list[str]:
    return (folder / "order").read_text().split() if (folder / "order").exists() else []


def test_jobs_wait_for_what_they_need_and_for_a_place(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "b", "echo b >> order", needs=("a/1",)),
        job(tmp_path, "a/1", "sleep 0.3; echo a >> order"),
        job(tmp_path, "c", "echo c >> order"),
        job(tmp_path, "d", "echo d >> order"),
    ]
    said: list[str] = []
    run_jobs(tmp_path / "jobs", jobs, 1, said.append)
    assert noted(tmp_path) == ["a", "b", "c", "d"]
    assert said[0].startswith("[1/4] a/1: ")
    covered, added = spent(tmp_path / "jobs", [each.name for each in jobs])
    assert 0.3 < added <= covered + 1e-6


def test_what_is_done_is_not_done_again_and_what_failed_is(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "a", "echo a >> order"),
        job(tmp_path, "b", "echo b >> order; echo why >&2; test -e mended", needs=("a",)),
    ]
    with pytest.raises(RewardZooError, match=r"b ended with 1; the end of .*jobs/b\.log:\n(.*\n)*why"):
        run_jobs(tmp_path / "jobs", jobs, 2)
    assert done(tmp_path / "jobs", "a")
    assert done(tmp_path / "jobs", "b") is None
    (tmp_path / "mended").touch()
    run_jobs(tmp_path / "jobs", jobs, 2)
    assert noted(tmp_path) == ["a", "b", "b"]
    run_jobs(tmp_path / "jobs", jobs, 2)
    assert noted(tmp_path) == ["a", "b", "b"]


def test_a_signal_is_handed_on_once_and_ends_the_call(tmp_path: Path) -> None:
    careful = "trap 'echo asked >> order; exit 3' TERM; touch ready; while :; do sleep 0.05; done"
    jobs = [job(tmp_path, "a", careful)]
    script = f"while [ ! -e {tmp_path}/ready ]; do sleep 0.05; done; kill -INT {os.getpid()}"
    with subprocess.Popen(["sh", "-c", script]), pytest.raises(StoppedError) as stopped:
        run_jobs(tmp_path / "jobs", jobs, 1)
    assert stopped.value.exit_code == 128 + signal.SIGINT
    assert noted(tmp_path) == ["asked"]
    assert done(tmp_path / "jobs", "a") is None


def test_the_jobs_of_a_call_that_was_killed_hold_the_folder(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from rewardzoo.trainers.lab.study.jobs import Job, run_jobs; "
        f"run_jobs(Path({str(tmp_path / 'jobs')!r}), "
        f"[Job('a', lambda: ['sh', '-c', 'echo $$ > {tmp_path}/pid; exec sleep 60'])], 1)"
    )
    call = subprocess.Popen([sys.executable, "-c", program])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert call.poll() is None
        time.sleep(0.05)
    call.kill()
    call.wait()
    left = int((tmp_path / "pid").read_text())
    with pytest.raises(ValueError, match="are still running"):
        run_jobs(tmp_path / "jobs", [], 1)
    os.kill(left, signal.SIGTERM)
    for _ in range(100):
        try:
            run_jobs(tmp_path / "jobs", [], 1)
            break
        except ValueError:
            time.sleep(0.05)
    else:
        pytest.fail("the lock is held though no job is left")
