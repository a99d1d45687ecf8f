"""(a) What bringing pixels to a reward costs: raw, PNG, JPEG, and a pickle-and-JPEG server in one run."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.serving.harness import Server, fakes, median, pickle_peer, report, running, seconds
from benchmarks.serving.pickle_peer import message
from rewardzoo import RewardClient
from rewardzoo.clients import wire

BATCH = 64
REWARD = "fake:noop"
Send = Callable[[], object]


def pictures(side: int, count: int = BATCH) -> NDArray[np.uint8]:
    """Pictures with the spectrum of photographs, 1/f, so that codecs meet what they were made for."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    found = np.empty((count, side, side, 3), np.uint8)
    for image in found:
        for channel in range(3):
            noise = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
            plane = np.fft.irfft2(noise / frequency, s=(side, side))
            image[..., channel] = np.clip(128 + 48 * plane / plane.std(), 0, 255)
    return found


def encode(image: NDArray[np.uint8], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, quality=95)
    return file.getvalue()


def pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 2**20):
        yield body[start : start + 2**20]


def main(rounds: int = 7) -> None:
    rows: list[dict[str, Any]] = []
    with running(fakes(max_body_mb=512)) as ours, running(pickle_peer()) as peer:
        for side in (384, 1024):
            images = pictures(side)
            files = {kind: [encode(image, kind) for image in images] for kind in ("PNG", "JPEG")}
            with httpx.Client(trust_env=False, timeout=120) as http, RewardClient(ours.url) as client:
                ways: dict[str, tuple[Server, Send, Send]] = {
                    "raw": (ours, v2(http, ours, images), scoring(client, lambda i=images: list(i))),
                    **{
                        kind: (
                            ours,
                            v2(http, ours, wire.bytes_tensor(files[kind])),
                            scoring(client, lambda k=kind, i=images: [encode(image, k) for image in i]),
                        )
                        for kind in files
                    },
                    "pickle + JPEG (peer)": (
                        peer,
                        pickled(http, peer, lambda f=files["JPEG"]: f),
                        pickled(http, peer, lambda i=images: [encode(image, "JPEG") for image in i]),
                    ),
                }
                rows += measure(side, ways, rounds)
    for row in rows:
        (base,) = (r for r in rows if r["side"] == row["side"] and "peer" in r["way"])
        row["ratio_to_peer"] = row["images_per_second"] / base["images_per_second"]
    report("transport", rows, batch=BATCH, rounds=rounds, statistic="median")


def measure(side: int, ways: dict[str, tuple[Server, Send, Send]], rounds: int) -> Iterator[dict[str, Any]]:
    """Time each way in turn, round by round, so that what else the machine does falls on all alike."""
    ready: dict[str, list[float]] = {way: [] for way in ways}
    whole: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(rounds + 1):
        for way, (server, send, encode_and_send) in ways.items():
            before = server.cpu_seconds()
            spent = seconds(send)
            used = server.cpu_seconds() - before
            both = seconds(encode_and_send)
            if round_:  # the first warms up
                ready[way].append(spent)
                cpu[way].append(used)
                whole[way].append(both)
    for way in ways:
        yield {
            "side": side,
            "way": way,
            "images_per_second": BATCH / median(ready[way]),
            "with_encoding": BATCH / median(whole[way]),
            # CPU time is counted in hundredths of a second, so only the sum over the rounds means something.
            "images_per_server_core_second": BATCH * rounds / max(sum(cpu[way]), 0.01),
        }


def v2(http: httpx.Client, server: Server, images: NDArray[Any]) -> Send:
    """Send a body made beforehand: what is timed is the way and the server."""
    tensors = {wire.IMAGES: images, wire.PROMPTS: wire.bytes_tensor(["a"] * BATCH)}
    header = {"parameters": {"binary_data_output": True}}
    chunks, length = wire.encode(header, tensors, key="inputs")
    body = b"".join(chunks)
    headers = {wire.HEADER: str(length), "Content-Length": str(len(body))}
    address = f"{server.url}/v2/models/{REWARD}/infer"
    return lambda: http.post(address, content=pieces(body), headers=headers).raise_for_status()


def scoring(client: RewardClient, images: Callable[[], Any]) -> Send:
    return lambda: client.score(images(), "a", reward=REWARD)


def pickled(http: httpx.Client, server: Server, files: Callable[[], list[bytes]]) -> Send:
    def send() -> object:
        body = message(files(), ["a"] * BATCH)
        headers = {"Content-Length": str(len(body))}
        return http.post(server.url, content=pieces(body), headers=headers).raise_for_status()

    return send
