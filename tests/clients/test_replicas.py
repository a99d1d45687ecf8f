"""Two real servers of which one is killed while a client scores, and comes back."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from rewardzoo import LocalRewards, RewardClient
from rewardzoo.trainers.lab import triples

pytestmark = pytest.mark.slow
REWARD = "hpsv2:mini"


def start_server(port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rewardzoo", "serve", REWARD, "--port", str(port), "--device", "cpu"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(server: subprocess.Popen[bytes]) -> None:
    # BentoML's workers are in sessions of their own: they outlive a killed group, and keep the port.
    workers = psutil.Process(server.pid).children(recursive=True)
    server.kill()
    server.wait()
    for worker in workers:
        worker.kill()
    psutil.wait_procs(workers, timeout=30)


def test_a_killed_replica_reaches_no_caller_and_gets_work_when_it_is_back(
    free_port: Callable[[], int],
) -> None:
    pairs = list(triples(32, seed=5))
    images = [p.right for p in pairs] * 10
    prompts = [p.prompt for p in pairs] * 10
    ports = [free_port(), free_port()]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    servers = [start_server(port) for port in ports]
    killed = threading.Event()
    try:
        for url in urls:
            with RewardClient(url) as one:
                one.wait_ready(120)
        with RewardClient(urls, reward=REWARD, timeout=120) as client:

            def strike() -> None:
                time.sleep(0.5)
                kill(servers[0])
                killed.set()

            striker = threading.Thread(target=strike)
            striker.start()
            found = []
            while not killed.is_set() or len(found) < 2:
                found.append(client.score(images, prompts))
            striker.join()
            servers[0] = start_server(ports[0])
            with RewardClient(urls[0]) as one:
                one.wait_ready(120)
            replica = client._pool._replicas().all[0]
            deadline = time.monotonic() + 30
            while replica.down:
                assert time.monotonic() < deadline, "the replica that came back is still out"
                time.sleep(0.1)
            count, infer_all = 0, replica.server.infer_all

            def counting(*args, **options):  # type: ignore[no-untyped-def]
                nonlocal count
                count += 1
                return infer_all(*args, **options)

            replica.server.infer_all = counting  # type: ignore[method-assign]
            found.append(client.score(images, prompts))
        assert count, "the replica that came back got nothing"
    finally:
        for server in servers:
            if server.poll() is None:
                kill(server)
    expected = LocalRewards([REWARD], device="cpu").score(images, prompts)
    for scores in found:
        np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=1e-5)
