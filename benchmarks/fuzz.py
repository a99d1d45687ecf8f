"""Hostile requests: to the parser, to the service in this process, and over sockets to a real server.

    nice -n 10 python benchmarks/fuzz.py --requests 100000

Hypothesis builds valid messages and spoils them: their structure, lengths, tensors, images, compression,
headers, routes, forms. None may be answered with a status of 500 or above but 503 and 504, none may take
longer than `SLOW` seconds twice, nothing may raise but `WireError`, and the server must score as before at
the end.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import platform
import random
import socket
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import httpx
import numpy as np
import psutil
import typer
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from rewardzoo.clients import wire
from rewardzoo.clients.images import decode_image
from rewardzoo.errors import ItemError
from rewardzoo.services import ServeConfig, make_service
from rewardzoo.services.inference import OUTPUTS, read_items
from rewardzoo.services.launch import running

REWARD = "hpsv2:mini"
SLOW = 10.0
PATIENCE = 0.5  # what the real server allows a request, seconds
PART = 500  # examples a run of Hypothesis, whose memory of what it tried grows
Headers = list[tuple[bytes, bytes]]


@dataclass
class Request:
    """One HTTP request, as it goes over a socket or into the app."""

    method: str
    path: str
    headers: Headers
    body: bytes


@dataclass
class Report:
    """What became of the requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    stalls: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def note(self, what: Request | str, outcome: str, seconds: float) -> None:
        self.statuses[outcome] += 1
        self.slowest = max(self.slowest, seconds)
        number = int(outcome) if outcome.isdigit() else 0
        if (number >= 500 and number not in (503, 504)) or outcome == "crash" or seconds > SLOW:
            self.failures.append(f"{outcome} after {seconds:.1f} s: {what!r:.2000}")


# --- valid messages --------------------------------------------------------------------------------


def picture(rng: random.Random, kind: str) -> bytes:
    side = (rng.randint(1, 24), rng.randint(1, 24))
    mode = rng.choice(["RGB", "RGB", "L", "RGBA", "P", "1", "LA"])
    image = Image.effect_noise(side, 80).convert(mode)
    if kind != "PNG" and mode not in ("RGB", "L"):
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, kind, **({"progressive": rng.random() < 0.5} if kind == "JPEG" else {}))
    return file.getvalue()


def noise(rng: random.Random, data: bytes) -> bytes:
    """Spoil some bytes: flip, cut, repeat, insert."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                del out[at : at + rng.choice([1, 2, 4, 64])]
            case 2:
                out[at:at] = rng.randbytes(rng.choice([1, 4, 32]))
            case 3:
                out[at:at] = out[at : at + rng.choice([1, 8, 64])]
            case 4:
                del out[at:]
            case 5:
                out[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"])
    return bytes(out)


WEIRD = [
    None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, -(2**63), 10**400, 1e308, 0.5, float("nan"),
    float("inf"), "", "a", "images", "prompts", "UINT8", "BYTES", "FP64", "\ud800", "\0", "é" * 50,
    [], {}, [[]], [[1], [2, 3]], [-1], [0], [2**31 - 1] * 3, [2**31 - 1] * 20,
    {"binary_data_size": 3}, {"binary_data": "yes"}, {"shared_memory_region": "x"},
    {"classification": 3}, [{"name": "scores"}], [{"name": "nope"}], {"name": 1},
]  # fmt: skip


def spoil(rng: random.Random, value: Any) -> Any:
    """Replace, remove, double or add something somewhere in a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, rng.choice(["parameters", "inputs", "data", "id", "x"]): rng.choice(WEIRD)}
            case _:
                return {**value, key: spoil(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        match rng.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value + value[at : at + 1]
            case _:
                return [*value[:at], spoil(rng, value[at]), *value[at + 1 :]]
    return rng.choice(WEIRD)


def tensors(rng: random.Random) -> dict[str, Any]:
    count = rng.choice([0, 1, 1, 2, 3])
    prompts = [rng.choice(["a cat", "", "é", "x" * 300, "a\0b", "  "]) for _ in range(count)]
    if rng.random() < 0.5:
        side = rng.choice([1, 7, 16])
        images: Any = np.frombuffer(rng.randbytes(count * side * side * 3), np.uint8)
        images = images.reshape(count, side, side, 3)
    else:
        files = [picture(rng, rng.choice(["PNG", "JPEG", "WEBP"])) for _ in range(count)]
        images = wire.bytes_tensor([noise(rng, f) if rng.random() < 0.5 else f for f in files])
    found = {wire.IMAGES: images, wire.PROMPTS: wire.bytes_tensor(prompts)}
    if rng.random() < 0.4:
        notes = [
            rng.choice(["", "{}", '{"step": 3}', "[]", "{", '{"a": NaN}', "[" * 900]) for _ in range(count)
        ]
        found[wire.METADATA] = wire.bytes_tensor(notes)
    if rng.random() < 0.2:
        found[wire.PROMPTS] = found[wire.PROMPTS].reshape(-1, 1)
    return found


def message(rng: random.Random) -> tuple[bytes, int]:
    """A message that is valid, or nearly: the bytes, and how many of them are JSON."""
    head = rng.choice([{}, {"id": "7"}, {"parameters": {"binary_data_output": True}}])
    given_tensors = tensors(rng)
    binary = [name for name in given_tensors if rng.random() < 0.8]
    try:
        chunks, length = wire.encode(head, given_tensors, key="inputs", binary=binary)
    except wire.WireError:  # bytes that are not UTF-8 have no form in JSON
        chunks, length = wire.encode(head, given_tensors, key="inputs")
    body = b"".join(chunks)
    if rng.random() < 0.6:
        header = json.loads(body[:length])
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            header = spoil(rng, header)
        text = json.dumps(header).encode()
        body, length = text + body[length:], len(text)
    if rng.random() < 0.3:
        body = noise(rng, body)
    if rng.random() < 0.1:
        length = rng.choice([0, 1, length - 1, length + 1, len(body), 2 * length])
    return body, length


# --- requests --------------------------------------------------------------------------------------

PATHS = [
    "/v2/models/{}/infer", "/v2/models/{}", "/v2/models/{}/ready", "/v2/models/{}/versions/1/infer",
    "/v2/models/{}/versions/9", "/v2", "/v2/health/ready", "/v2/repository/index", "/score", "/", "/metrics",
    "/docs.json", "/schema.json", "/v2/models/", "/v2/repository/models/{}/load", "/nope",
]  # fmt: skip
MODELS = [
    REWARD,
    "hpsv2",
    "nope",
    "hpsv2%3Amini",
    "..",
    "%00",
    "é",
    "a" * 2000,
    f"{REWARD}+{REWARD}",
    "+",
    " ",
]


def infer_request(rng: random.Random) -> Request:
    body, length = message(rng)
    headers: Headers = [(wire.HEADER.encode(), str(length).encode())]
    if rng.random() < 0.15:
        body, encoding = compressed(rng, body)
        headers.append((b"Content-Encoding", encoding))
    if rng.random() < 0.1:
        odd = [b"", b"-1", b"abc", b"1e3", b"9" * 40, b"\xff", b"0x10", b"1,2"]
        headers[0] = (wire.HEADER.encode(), rng.choice(odd))
    if rng.random() < 0.05:
        headers.append((b"X-Request-ID", rng.randbytes(20)))
    if rng.random() < 0.05:
        headers.append((b"Request-Timeout", rng.choice([b"0", b"-1", b"nan", b"inf", b"1e9", b"5"])))
    return Request("POST", f"/v2/models/{REWARD}/infer", headers, body)


def compressed(rng: random.Random, body: bytes) -> tuple[bytes, bytes]:
    packed = rng.choice([gzip.compress, zlib.compress])(body)
    if rng.random() < 0.5:
        packed = noise(rng, packed)
    if rng.random() < 0.1:
        packed = gzip.compress(packed)
    return packed, rng.choice([b"gzip", b"deflate", b"gzip", b"br", b"identity", b"gzip, gzip", b"\xff"])


def form_request(rng: random.Random) -> Request:
    files = [("images", (f"{i}.png", picture(rng, "PNG"), "image/png")) for i in range(rng.choice([0, 1, 2]))]
    data = {"prompts": json.dumps(["a"] * len(files)), "reward": REWARD, "metadata": "[]"}
    for name in list(data):
        match rng.randrange(8):
            case 0:
                del data[name]
            case 1:
                data[name] = json.dumps(rng.choice(WEIRD))
            case 2:
                data[name] = rng.choice(["", "[", "[1]", "http://127.0.0.1:1/a.png", "\0", "[" * 5000])
    built = httpx.Request("POST", "http://x/score", files=files or {"x": b""}, data=data)
    body, kind = built.read(), built.headers["Content-Type"].encode()
    if rng.random() < 0.4:
        body = noise(rng, body)
    if rng.random() < 0.2:
        kinds = [b"", b"=", b"=x", b"=" + b"a" * 5000, kind.partition(b"boundary")[2] + b"; charset=nope"]
        kind = rng.choice(
            [kind.upper(), b"application/json", b"text/plain", b"\xff", b"application/vnd.bentoml+pickle"]
            + [b"application/x-www-form-urlencoded", b"multipart/form-data", b"multipart/mixed; boundary=x"]
            + [b"multipart/form-data; boundary" + rest for rest in kinds]
        )
    return Request("POST", "/score", [(b"Content-Type", kind)], body)


def other_request(rng: random.Random) -> Request:
    method = rng.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
    body = rng.choice([b"", b"{}", b'{"ready": true}', b"[", rng.randbytes(50)])
    path = rng.choice(PATHS).format(rng.choice(MODELS))
    return Request(method, path, [(b"Content-Type", b"application/json")] if rng.random() < 0.5 else [], body)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    make = draw(st.sampled_from([infer_request] * 6 + [form_request] * 2 + [other_request]))
    return make(random.Random(draw(st.integers(0, 2**64))))


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, int]:
    return message(random.Random(draw(st.integers(0, 2**64))))


# --- those that are asked --------------------------------------------------------------------------


def parse(report: Report, body: bytes, length: int | None) -> None:
    """Read a message as the service does, down to the pixels."""
    start = time.perf_counter()
    try:
        found = wire.decode(body, length, key="inputs", max_texts=4096)
        wire.requested_outputs(found.header, OUTPUTS)
        for item in read_items(found):
            if not isinstance(item, ItemError) and isinstance(item.image, bytes):
                with suppress(ItemError):
                    decode_image(item.image)
        outcome = "read"
    except wire.WireError:
        outcome = "refused"
    except Exception as error:
        outcome = "crash"
        report.failures.append(f"{error!r} from {body!r:.2000}, {length}")
    report.note("message", outcome, time.perf_counter() - start)


async def ask(app: Any, request: Request) -> str:
    """Give a request to the app; return the status of its answer."""
    statuses: list[int] = []
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": request.body, "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.start":
            statuses.append(event["status"])

    declared = any(name.lower() == b"content-length" for name, _ in request.headers)
    length = [] if declared else [(b"content-length", str(len(request.body)).encode())]
    await app(
        {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": httpx.URL(f"http://x{request.path}").path,
            "raw_path": request.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in [*request.headers, *length]],
            "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", 80),
        },
        receive,
        send,
    )
    return str(statuses[0]) if statuses else "crash"


def over_socket(port: int, data: bytes) -> str:
    """Send bytes to the server; return the status of its answer, or what it did instead."""
    with socket.create_connection(("127.0.0.1", port), timeout=2 * PATIENCE) as connection:
        try:
            connection.sendall(data)
            line = connection.makefile("rb").readline(200)
        except (ConnectionResetError, BrokenPipeError):
            return "closed"
        except TimeoutError:
            return "waits for more"  # of a head that has no end
    return line.split()[1].decode() if line.startswith(b"HTTP/1.1 ") else "closed"


def raw(rng: random.Random, request: Request) -> bytes:
    """Write a request as HTTP/1.1, with its framing spoilt now and then."""
    headers = [(b"Host", b"x"), *request.headers]
    body = request.body
    match rng.randrange(8):
        case 0:
            headers.append((b"Transfer-Encoding", b"chunked"))
            size = rng.choice([b"%x" % len(body), b"ffffffffffffffff", b"-1", b"zz", b"%x" % (len(body) + 5)])
            body = size + b"\r\n" + body + b"\r\n0\r\n\r\n"
        case 1:
            wrong = [
                b"-1",
                b"abc",
                b"99999999999999999999",
                b"%d" % (len(body) + 9),
                b"%d" % (len(body) // 2),
            ]
            headers.append((b"Content-Length", rng.choice(wrong)))
        case 2:
            headers += [(b"Content-Length", b"%d" % len(body)), (b"Content-Length", b"7")]
        case 3:
            headers += [(b"X-%d" % i, b"y" * 100) for i in range(rng.choice([100, 1000]))]
        case _:
            headers.append((b"Content-Length", b"%d" % len(body)))
    path = request.path.encode("utf-8", "replace").replace(b" ", b"%20")
    head = request.method.encode() + b" " + path + b" HTTP/1.1\r\n"
    data = head + b"".join(name + b": " + value + b"\r\n" for name, value in headers) + b"\r\n" + body
    return noise(rng, data[:400]) + data[400:] if rng.random() < 0.2 else data


# --- runs ------------------------------------------------------------------------------------------


def examples(count: int, start: int, run: Callable[..., None], **strategies: st.SearchStrategy[Any]) -> None:
    """Call `run` with so many examples, other ones for each `start`."""
    for part in range(0, count, PART):
        tried = settings(
            max_examples=min(PART, count - part),
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )(given(**strategies)(run))
        seed(start + part)(tried)()


def fuzz_parser(count: int, start: int = 0) -> Report:
    """Have the parser read spoilt messages."""
    report = Report()

    def run(made: tuple[bytes, int], all_json: bool) -> None:
        parse(report, made[0], None if all_json else made[1])

    examples(count, start, run, made=messages(), all_json=st.booleans())
    return report


def fuzz_app(count: int, start: int = 0) -> Report:
    """Have the whole service, in this process, answer spoilt requests."""
    report = Report()
    environment = {"REWARDZOO_REWARDS": REWARD, "REWARDZOO_DEVICE": "cpu", "REWARDZOO_MAX_BODY_MB": "1"}
    app = make_service("Fuzz").to_asgi()

    async def timed(request: Request, again: bool = True) -> None:
        began = time.perf_counter()
        try:
            outcome = await asyncio.wait_for(ask(app, request), SLOW)
        except Exception as error:
            if not isinstance(error, TimeoutError):
                report.failures.append(repr(error))
            outcome = "crash"
        seconds = time.perf_counter() - began
        if again and seconds > SLOW:
            # On a busy machine any process may stand still; only the request's own fault comes back.
            report.stalls.append(round(seconds, 1))
            return await timed(request, again=False)
        return report.note(request, outcome, seconds)

    with patch.dict(os.environ, environment), asyncio.Runner() as loop, _lifespan(app, loop):
        examples(count, start, lambda request: loop.run(timed(request)), request=requests())
    return report


class _lifespan:  # noqa: N801  # used as a function
    """The app's startup and shutdown around a block."""

    def __init__(self, app: Any, loop: asyncio.Runner) -> None:
        self.context, self.loop = app.router.lifespan_context(app), loop

    def __enter__(self) -> None:
        self.loop.run(_await(self.context.__aenter__()))

    def __exit__(self, *error: Any) -> None:
        self.loop.run(_await(self.context.__aexit__(*error)))


async def _await(work: Awaitable[Any]) -> Any:
    return await work


def fuzz_server(count: int, start: int = 0) -> tuple[Report, dict[str, Any]]:
    """Send spoilt requests over sockets to a real server, and see whether it is what it was before."""
    report = Report()
    config = ServeConfig(rewards=[REWARD], device="cpu", max_body_mb=1, timeout=PATIENCE)
    with tempfile.TemporaryDirectory() as folder, running(config, log=Path(folder) / "log") as url:
        port = httpx.URL(url).port or 0
        before, workers = _score(url), _workers(port)
        rss: list[int] = []

        def run(request: Request, chance: int) -> None:
            began = time.perf_counter()
            try:
                outcome = over_socket(port, raw(random.Random(chance), request))
            except OSError as error:  # a time that ran out, or nobody who listens
                outcome = "crash"
                report.failures.append(repr(error))
            report.note(request, outcome, time.perf_counter() - began)

        for part in range(0, count, PART):
            examples(
                min(PART, count - part), start + part, run, request=requests(), chance=st.integers(0, 2**32)
            )
            rss.append(sum(worker.memory_info().rss for worker in workers))
        same = _score(url) == before and workers == _workers(port)
        if not same:
            report.failures.append("the server is not what it was: another process, or another score")
        log = (Path(folder) / "log").read_text()
    facts = {"rss_mib_by_part": [size >> 20 for size in rss], "tracebacks_logged": log.count("Traceback")}
    return report, facts


def _score(url: str) -> Any:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    form = {"prompts": '["a red square"]', "reward": REWARD}
    with httpx.Client(trust_env=False, timeout=60) as client:
        answer = client.post(f"{url}/score", files={"images": file.getvalue()}, data=form)
    return answer.raise_for_status().json()["scores"]


def _workers(port: int) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "_bentoml_impl.worker.service" in " ".join(child.cmdline())
    ]


def main(
    count: Annotated[int, typer.Option("--requests", help="How many in all.")] = 1000,
    start: Annotated[int, typer.Option("--seed", help="Other requests for each.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the result there.")] = None,
) -> None:
    """Fuzz the parser (a half), the app (four tenths) and a real server (a tenth), each in a process."""
    began = time.perf_counter()
    runs: dict[str, Any] = {}
    failures: list[str] = []
    shares: dict[str, tuple[float, Callable[..., Any]]] = {
        "parser": (0.5, fuzz_parser),
        "app": (0.4, fuzz_app),
        "server": (0.1, fuzz_server),
    }
    with ProcessPoolExecutor(len(shares), get_context("spawn")) as pool:
        working = {name: pool.submit(run, int(count * part), start) for name, (part, run) in shares.items()}
    for name, work in working.items():
        done: Any = work.result()
        report, facts = done if isinstance(done, tuple) else (done, {})
        runs[name] = {
            "requests": sum(report.statuses.values()),
            "outcomes": dict(sorted(report.statuses.items())),
            "slowest_s": round(report.slowest, 3),
            "stalls_s": report.stalls,
            **facts,
        }
        failures += report.failures
        print(name, json.dumps(runs[name]), flush=True)
    result = {
        "requests": sum(run["requests"] for run in runs.values()),
        "failures": failures,
        "runs": runs,
        "seed": start,
        "seconds": round(time.perf_counter() - began),
        "python": platform.python_version(),
    }
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['requests']} requests, {len(failures)} failures")
    for failure in failures[:20]:
        print(failure)
    sys.exit(bool(failures))


if __name__ == "__main__":
    typer.run(main)
