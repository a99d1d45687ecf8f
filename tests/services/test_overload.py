"""A server that has enough to do: it says so at once, and does nothing for who has left."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from rewardzoo.clients import wire
from rewardzoo.services import ServeConfig
from rewardzoo.services.host import Host
from rewardzoo.services.routes import make_app

PATH = "/v2/models/fake:v1/infer"


def body(count: int, size: int = 4) -> tuple[bytes, dict[str, str]]:
    tensors = {
        wire.IMAGES: np.zeros((count, size, size, 3), np.uint8),
        wire.PROMPTS: wire.bytes_tensor(["a"] * count),
    }
    chunks, length = wire.encode({}, tensors, key="inputs")
    return b"".join(chunks), {wire.HEADER: str(length)}


def post(url: str, count: int, size: int = 4) -> httpx.Response:
    content, headers = body(count, size)
    return httpx.post(url + PATH, content=content, headers=headers, timeout=30, trust_env=False)


@pytest.fixture
def hosting(model: Any, free_port: Callable[[], int]) -> Any:
    """A server in a thread of this process; gives its URL and its host."""

    @contextmanager
    def run(**settings: Any) -> Iterator[tuple[str, Host]]:
        config = ServeConfig(rewards=["fake:v1"], device="cpu", **settings)
        host = Host(config, [model])
        app = make_app()
        app.state.host = host
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))

        async def main() -> None:
            await host.start()
            await server.serve()
            await host.stop()

        thread = threading.Thread(target=asyncio.run, args=(main(),))
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{port}", host
        finally:
            model.go.set()
            server.should_exit = True
            thread.join()

    return run


@contextmanager
def busy(url: str, host: Host, model: Any, count: int) -> Iterator[None]:
    """Hold the device, with `count` more items waiting behind what runs and what is prepared."""
    model.go.clear()
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(post, url, 16 + count)
        try:
            until(lambda: host.find("fake:v1").waiting == count)
            yield
        finally:
            model.go.set()
            assert held.result().status_code == 200


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_full_queue_is_told_before_the_body_is_sent(hosting: Any, model: Any) -> None:
    with hosting(max_queue=4) as (url, host), busy(url, host, model, 4):
        name, port = url.removeprefix("http://").split(":")
        with socket.create_connection((name, int(port)), timeout=20) as connection:
            connection.sendall(
                f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 28000000\r\n\r\n".encode()
            )
            answer = connection.recv(65536)  # not one byte of the body was sent
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after:" in answer.lower()


def test_bytes_are_bounded_as_well_as_items_and_given_back(hosting: Any, model: Any) -> None:
    with hosting(max_queue_mb=1) as (url, host):
        model.go.clear()
        with ThreadPoolExecutor(2) as threads:
            held = threads.submit(post, url, 1, 512)  # 768 KiB
            until(lambda: host.admission.held > 700_000)
            refused = post(url, 1, 512)
            assert refused.status_code == 503
            assert "max_queue_mb" in refused.json()["error"]
            assert "Retry-After" in refused.headers
            small = threads.submit(post, url, 1)
            until(lambda: host.find("fake:v1").waiting == 1)
            model.go.set()
            assert held.result().status_code == small.result().status_code == 200
        until(lambda: host.admission.held == 0)
        assert post(url, 1, 512).status_code == 200


def test_everybody_is_answered_under_overload_and_nothing_is_left_of_it(hosting: Any, model: Any) -> None:
    with hosting(max_queue=32) as (url, host):
        with busy(url, host, model, 24), ThreadPoolExecutor(16) as threads:
            refused = threads.submit(post, url, 40)
            assert refused.result().status_code == 503
            pending = [threads.submit(post, url, 4) for _ in range(16)]
            until(lambda: sum(one.done() for one in pending) >= 14)  # two of four fit
            model.go.set()
            answers = [one.result() for one in pending]
        assert sorted(answer.status_code for answer in answers) == [200] * 2 + [503] * 14
        assert all(int(a.headers["Retry-After"]) >= 1 for a in answers if a.status_code == 503)
        assert host.find("fake:v1").waiting == 0
        assert host.admission.held == 0
        assert post(url, 1).status_code == 200


def test_the_items_of_a_client_that_hangs_up_leave_the_queue_and_never_reach_the_device(
    hosting: Any, model: Any
) -> None:
    with hosting() as (url, host):
        reward = host.find("fake:v1")
        with busy(url, host, model, 4):
            name, port = url.removeprefix("http://").split(":")
            content, headers = body(3)
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
            head += "".join(f"{key}: {value}\r\n" for key, value in headers.items()) + "\r\n"
            with socket.create_connection((name, int(port)), timeout=20) as connection:
                connection.sendall(head.encode() + content)
                until(lambda: reward.waiting == 7)
            until(lambda: reward.waiting == 4)
        until(lambda: host.admission.held == 0)
    assert sum(model.sizes) == 20


def test_the_items_of_a_request_whose_time_is_up_leave_the_queue_too(hosting: Any, model: Any) -> None:
    with hosting() as (url, host), busy(url, host, model, 4):
        content, headers = body(3)
        headers["Request-Timeout"] = "0.2"
        late = httpx.post(url + PATH, content=content, headers=headers, timeout=30, trust_env=False)
        assert late.status_code == 504
        assert host.find("fake:v1").waiting == 4
    assert sum(model.sizes) == 20
