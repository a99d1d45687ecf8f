from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from rewardzoo.clients import wire


@dataclass
class Answer:
    """What the server does with one infer request instead of scoring it."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    wait: float = 0.0


@dataclass
class FakeServer:
    """A scorer over real HTTP: a score is the sum of the image's bytes, twice that from "double".

    With `joins` it takes names joined by "+"; `delay` is how many seconds a request takes, `tells` what it
    says of its models beside the recipe.
    """

    port: int = 0
    columns: bool = False
    joins: bool = False
    delay: float = 0.0
    tells: dict[str, str] = field(default_factory=dict)
    script: list[Answer] = field(default_factory=list)
    seen: list[wire.Message] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    index: list[dict[str, str]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.port = self.http.server_port
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            server.paths.append(self.path)
            if "%2B" in self.path and not server.joins:
                return self.reply(b'{"error": "no such model"}', 404)
            if server.stopping.is_set():
                self.close_connection = True
                return None
            one = [-1, 1] if server.columns else [-1]
            inputs = [{"name": n, "shape": one, "datatype": "BYTES"} for n in ("prompts", "metadata")]
            metadata = {"inputs": inputs, "parameters": {"recipe": "sum", **server.tells}}
            return self.reply(json.dumps(metadata).encode())

        def do_POST(self) -> None:
            server.paths.append(self.path)
            server.headers.append(dict(self.headers))
            if server.stopping.is_set():
                self.close_connection = True
                return None
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path.endswith("/index"):
                return self.reply(json.dumps(server.index).encode())
            if server.script:
                answer = server.script.pop(0)
                server.stopping.wait(answer.wait)
                if answer.drop:
                    self.close_connection = True
                    return None
                return self.reply(answer.body, answer.status, **answer.headers)
            message = wire.decode(body, wire.parse_json_length(self.headers[wire.HEADER]), key="inputs")
            server.seen.append(message)
            server.stopping.wait(server.delay)
            sums = np.array([float(np.frombuffer(x, np.uint8).sum()) for x in _bytes(message)], np.float32)
            names = unquote(self.path.split("/")[3]).split("+")
            scores = np.stack([sums * (2 if name == "double" else 1) for name in names], axis=1)
            parameters: dict[str, str] = {"recipe": "sum"}
            if len(names) > 1:
                parameters = {"provenance": json.dumps({f"{name}:v1": {"recipe": name} for name in names})}
            elif not server.columns:
                scores = scores[:, 0]
            header = {"model_name": "+".join(f"{name}:v1" for name in names), "parameters": parameters}
            chunks, length = wire.encode(header, {"scores": scores}, key="outputs")
            return self.reply(b"".join(chunks), **{wire.HEADER: str(length)})

    return Handler


def _bytes(message: wire.Message) -> list[bytes]:
    images = message.tensors["images"]
    return [x if isinstance(x, bytes) else x.tobytes() for x in images]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def answer() -> type[Answer]:
    return Answer


@pytest.fixture
def make_server() -> type[FakeServer]:
    return FakeServer
