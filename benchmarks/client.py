"""What `RewardClient` costs over a bare request, how much memory it takes, and calls of one sample each.

    python benchmarks/client.py [--rounds 40] [--out benchmarks/results/client.json]

The server is another process that reads the body into one buffer and answers at once, so that all there is
to see is the client's. The bare request is the same body, encoded before the clock starts, sent whole by
`http.client` over a connection that is kept open, its answer read and left undecoded; it alternates with
`client.score`, so that a slow spell of the machine meets both.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
import typer
from numpy.typing import NDArray

from rewardzoo.clients import AsyncRewardClient, RewardClient, wire

BATCH, SIDE = 64, 384
CALLS, TASKS = 1000, 64
REWARD, PACED, PACE = "noop", "paced", 1e-3


class Noop(BaseHTTPRequestHandler):
    """Answers an infer request with as many scores as it has prompts, after reading all of it.

    For the reward "paced" it takes `PACE` seconds an item first, one request at a time, as a device would.
    """

    device = threading.Lock()
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.answer(b"{}")

    def do_POST(self) -> None:
        body = bytearray(int(self.headers["Content-Length"]))
        view, at = memoryview(body), 0
        while at < len(body):
            at += self.rfile.readinto(view[at:])  # type: ignore[attr-defined]
        message = wire.decode(body, wire.parse_json_length(self.headers[wire.HEADER]), key="inputs")
        if PACED in self.path:
            with self.device:
                time.sleep(PACE * len(message.tensors[wire.PROMPTS]))
        scores = np.zeros(len(message.tensors[wire.PROMPTS]), np.float32)
        chunks, length = wire.encode({}, {wire.SCORES: scores}, key="outputs")
        self.answer(b"".join(chunks), length)

    def answer(self, body: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if length is not None:
            self.send_header(wire.HEADER, str(length))
        self.end_headers()
        self.wfile.write(body)


def serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Noop)
    print(server.server_port, flush=True)
    server.serve_forever()


@contextmanager
def serving() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def bare(url: str, images: NDArray[np.uint8]) -> Callable[[], None]:
    """Return a request that is ready to be sent, again and again."""
    tensors = {wire.IMAGES: images, wire.PROMPTS: wire.bytes_tensor(["a cat"] * len(images))}
    chunks, length = wire.encode({"parameters": {"binary_data_output": True}}, tensors, key="inputs")
    body = b"".join(chunks)
    connection = http.client.HTTPConnection(urlsplit(url).netloc)

    def send() -> None:
        connection.request("POST", f"/v2/models/{REWARD}/infer", body, {wire.HEADER: str(length)})
        connection.getresponse().read()

    return send


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def overhead(url: str, rounds: int) -> dict[str, Any]:
    images = pictures(BATCH)
    send = bare(url, images)
    with RewardClient(url, reward=REWARD) as client:

        def score() -> None:
            client.score(images, "a cat")

        for work in (send, score):
            work()
        pairs = [(timed(send), timed(score)) for _ in range(rounds)]
    bares, scores = (np.array(column) for column in zip(*pairs, strict=True))
    return {
        "batch": [BATCH, SIDE, SIDE, 3],
        "rounds": rounds,
        "bare_request_ms": round(float(np.median(bares)) * 1e3, 2),
        "client_score_ms": round(float(np.median(scores)) * 1e3, 2),
        "ratio_of_medians": round(float(np.median(scores) / np.median(bares)), 3),
        "median_of_ratios": round(float(np.median(scores / bares)), 3),
    }


def memory(url: str) -> dict[str, Any]:
    """Peak of what Python and numpy allocate while a call runs, the batch itself included."""
    found = {}
    with RewardClient(url, reward=REWARD) as client:
        client.score(pictures(1), "a cat")
        for count in (BATCH, 4 * BATCH):
            tracemalloc.start()
            images = pictures(count)
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            client.score(images, "a cat")
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            found[str(count)] = {
                "batch_mb": round(images.nbytes / 1e6, 1),
                "peak_over_batch": round((peak - before + images.nbytes) / images.nbytes, 3),
            }
    return found


def singles(url: str, reward: str, rounds: int) -> dict[str, Any]:
    """Images a second of calls of one sample from concurrent tasks, and of batches one after another."""
    images = pictures(BATCH)
    rates: dict[str, list[float]] = {"batches": [], "singles": []}

    async def ask(client: AsyncRewardClient, left: list[int]) -> None:
        while left:
            i = left.pop()
            await client.score(images[i % BATCH][None], f"prompt {i}")

    async def all_single() -> None:
        async with AsyncRewardClient(url, reward=reward) as client:
            left = list(range(CALLS))
            await asyncio.gather(*(ask(client, left) for _ in range(TASKS)))

    def batches() -> None:
        with RewardClient(url, reward=reward) as client:
            for start in range(0, CALLS, BATCH):
                count = min(BATCH, CALLS - start)
                client.score(images[:count], [f"prompt {start + i}" for i in range(count)])

    for _ in range(rounds):
        rates["batches"].append(CALLS / timed(batches))
        rates["singles"].append(CALLS / timed(lambda: asyncio.run(all_single())))
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    return {
        "calls": CALLS,
        "tasks": TASKS,
        "rounds": rounds,
        "batches_of_64_images_per_second": medians["batches"],
        "single_calls_images_per_second": medians["singles"],
        "ratio": round(medians["singles"] / medians["batches"], 3),
    }


def main(
    rounds: Annotated[int, typer.Option(help="Requests of each kind.")] = 40,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    serve_only: Annotated[bool, typer.Option("--serve", hidden=True)] = False,
) -> None:
    if serve_only:
        return serve()
    with serving() as url:
        result = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "load_average": round(os.getloadavg()[0], 1),
            "overhead": overhead(url, rounds),
            "memory": memory(url),
            "calls_of_one_sample": {
                "server_that_does_nothing": singles(url, REWARD, max(3, rounds // 4)),
                "server_of_1000_images_per_second": singles(url, PACED, max(3, rounds // 8)),
            },
        }
    print(json.dumps(result, indent=1))
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    return None


if __name__ == "__main__":
    typer.run(main)
