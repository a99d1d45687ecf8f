"""A real server whose device is lost: its callers are told, and its supervisor starts it anew."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

import rewardzoo

ITEM = {"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0], "name": "images"}


@pytest.fixture
def port(free_port: Callable[[], int]) -> int:
    return free_port()


@pytest.fixture
def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def supervisor(port: int, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    root = Path(rewardzoo.__file__).resolve().parent.parent
    command = [sys.executable, "-m", "bentoml", "serve", "breaking_service:service"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONPATH": str(root), "BENTOML_DO_NOT_TRACK": "True"},
            stdout=log,
            stderr=log,
        )
        try:
            yield server
        finally:
            server.terminate()
            server.wait(20)


def ask(url: str, prompt: str) -> httpx.Response:
    tensor = {"name": "prompts", "datatype": "BYTES", "shape": [1], "data": [prompt]}
    return httpx.post(
        f"{url}/v2/models/breaking:v1/infer", json={"inputs": [ITEM, tensor]}, timeout=20, trust_env=False
    )


def pid_of(url: str, patience: float) -> int:
    """Ask until there is a score; say which process gave it."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with suppress(httpx.HTTPError):
            answer = ask(url, "fine")
            if answer.status_code == 200:
                details = next(o for o in answer.json()["outputs"] if o["name"] == "details")
                return int(details["data"][0].partition(":")[2].strip(" }"))
        time.sleep(0.1)
    pytest.fail("the server does not answer")


@pytest.mark.slow
@pytest.mark.usefixtures("supervisor")
def test_a_lost_device_is_told_to_its_callers_and_the_worker_is_replaced(url: str) -> None:
    first = pid_of(url, 60)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda prompt: ask(url, prompt), ["break"] + ["break"] * 7))
    assert {answer.status_code for answer in answers} == {503}
    assert all(int(answer.headers["Retry-After"]) >= 5 for answer in answers)
    assert "the device is lost" in answers[0].json()["error"]
    second = pid_of(url, 60)
    assert second != first


@pytest.mark.slow
def test_a_worker_ends_when_its_supervisor_was_killed(url: str, supervisor: subprocess.Popen[bytes]) -> None:
    worker = psutil.Process(pid_of(url, 60))
    supervisor.kill()
    supervisor.wait()
    worker.wait(60)
