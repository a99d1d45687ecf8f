from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from rewardzoo.clients.sockets import SocketTransport, direct

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Script:
    """A server that answers each request of a connection with the next of `answers`, and then hangs up.

    An answer of None is silence. It reads `most` bytes of a request at most.
    """

    def __init__(self, *connections: list[bytes | None], most: int = 2**20) -> None:
        self.connections, self.most = list(connections), most
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.accepted, self.closed = 0, threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while self.connections:
            try:
                peer, _ = self.socket.accept()
            except OSError:
                return
            self.accepted += 1
            with peer:
                for answer in self.connections.pop(0):
                    peer.recv(self.most)
                    if answer is None:
                        self.closed.wait(5)
                    else:
                        peer.sendall(answer)

    def close(self) -> None:
        self.closed.set()
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()


@pytest.fixture
def script() -> Iterator[Any]:
    made: list[Script] = []

    def make(*connections: list[bytes | None], **options: Any) -> Script:
        made.append(Script(*connections, **options))
        return made[-1]

    yield make
    for server in made:
        server.close()


def client(**options: Any) -> httpx.Client:
    return httpx.Client(transport=SocketTransport(), **options)


def test_a_connection_is_kept_and_one_that_the_server_closed_is_not_used_again(script: Any) -> None:
    server = script([OK, OK], [OK])
    with client() as http:
        assert [http.get(server.url).text for _ in range(3)] == ["ok"] * 3
    assert server.accepted == 2


def test_a_refusal_before_the_whole_body_was_read_is_the_answer(script: Any) -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    server = script([refusal], most=2**16)
    with client() as http:
        assert http.post(server.url, content=bytes(2**26)).status_code == 413


def test_a_body_in_chunks_and_compressed_is_read(script: Any) -> None:
    import gzip

    packed = gzip.compress(b"hello")
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n"
    server = script([head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed)])
    with client() as http:
        assert http.get(server.url).text == "hello"


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([None], httpx.ReadTimeout),
        ([b""], httpx.ReadError),
        ([b"no HTTP\r\n\r\n"], httpx.RemoteProtocolError),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"], httpx.RemoteProtocolError),
    ],
    ids=["silent", "dropped", "no HTTP", "cut short"],
)
def test_what_goes_wrong_is_an_error_of_httpx(script: Any, answers: Any, error: Any) -> None:
    server = script(answers)
    with client(timeout=0.2) as http, pytest.raises(error):
        http.get(server.url)


def test_nobody_there_is_a_connect_error_and_a_bad_header_cannot_be_sent(script: Any) -> None:
    with client(timeout=1) as http:
        with pytest.raises(httpx.ConnectError):
            http.get("http://127.0.0.1:1")
        with pytest.raises(httpx.LocalProtocolError):
            http.get(script([OK]).url, headers={"X": "a\nb"})


def test_a_proxy_of_the_environment_is_left_to_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(direct("http://host:3000"), SocketTransport)
    monkeypatch.setenv("http_proxy", "http://proxy:8080")
    assert direct("http://host:3000") is None
    assert isinstance(direct("https://host:3000"), SocketTransport)
    monkeypatch.setenv("no_proxy", "host")
    assert isinstance(direct("http://host:3000"), SocketTransport)
    monkeypatch.delenv("http_proxy")
    monkeypatch.setenv("all_proxy", "http://proxy:8080")
    assert direct("http://other:3000") is None
