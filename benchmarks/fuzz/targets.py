"""Those that are asked: the parser, the service in this process, a real server; and what became of it."""

from __future__ import annotations

import asyncio
import io
import os
import random
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.fuzz.requests import REWARD, Request, messages, raw, requests
from rewardzoo.clients import wire
from rewardzoo.clients.images import decode_image
from rewardzoo.errors import ItemError
from rewardzoo.services import ServeConfig, make_service
from rewardzoo.services.inference import OUTPUTS, read_items
from rewardzoo.services.launch import running

SLOW = 10.0
PATIENCE = 0.5  # what the real server allows a request, seconds
PART = 500  # examples a run of Hypothesis, whose memory of what it tried grows


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
