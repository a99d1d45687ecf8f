"""An httpx transport that sends a body straight from its memory, by the standard library's `http.client`.

httpx's own copies what it sends several times over on its way to the socket, which for 28 MB of pixels costs
half as much again as sending them (benchmarks/client.py).
"""

from __future__ import annotations

import http.client
import selectors
import ssl
import threading
import urllib.request
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

_Origin = tuple[bytes, bytes, int | None]


Verify = bool | str | Path | ssl.SSLContext
"""How a server's certificate is checked; see `RewardClient`."""


def tls_context(verify: Verify) -> ssl.SSLContext:
    """Return what a connection is made with."""
    if isinstance(verify, ssl.SSLContext):
        return verify
    if isinstance(verify, bool):
        return httpx.create_ssl_context(verify=verify)
    return ssl.create_default_context(cafile=verify)


def direct(url: str, verify: Verify = True) -> httpx.BaseTransport | None:
    """Return a transport for `url`, or None where the environment names a proxy, which httpx's own knows."""
    parsed = httpx.URL(url)
    named = {parsed.scheme, "all"} & urllib.request.getproxies().keys()
    proxied = named and not urllib.request.proxy_bypass(parsed.host)
    return None if proxied else SocketTransport(verify)


class SocketTransport(httpx.BaseTransport):
    """HTTP/1.1 over connections that are kept open, as many as there are requests at a time. Thread-safe."""

    def __init__(self, verify: Verify = True) -> None:
        self._verify = verify
        self._idle: dict[_Origin, list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read all of its answer."""
        timeouts = request.extensions.get("timeout", {})
        connection, origin = self._connected(request, timeouts), _origin(request.url)
        try:
            _send(connection, request, timeouts.get("write"))
            answer = _read(connection, request, timeouts.get("read"))
        except BaseException:
            connection.close()
            raise
        if answer.extensions.pop("closes"):
            connection.close()
        else:
            with self._lock:
                self._idle.setdefault(origin, []).append(connection)
        return answer

    def close(self) -> None:
        """Close the connections that no request is on."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return tls_context(self._verify)

    def _connected(self, request: httpx.Request, timeouts: dict[str, Any]) -> http.client.HTTPConnection:
        idle = self._idle.get(_origin(request.url), [])
        while True:
            with self._lock:
                connection = idle.pop() if idle else None
            if connection is None:
                break
            if not _readable(connection):
                return connection
            connection.close()  # an answer to no request: the server has hung up
        host, port, timeout = request.url.host, request.url.port, timeouts.get("connect")
        if request.url.scheme == "https":
            connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
        try:
            connection.connect()
        except TimeoutError as error:
            raise httpx.ConnectTimeout(str(error), request=request) from error
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        return connection


def _origin(url: httpx.URL) -> _Origin:
    return url.raw_scheme, url.raw_host, url.port


def _readable(connection: http.client.HTTPConnection) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ)
        return bool(selector.select(0))


def _send(connection: http.client.HTTPConnection, request: httpx.Request, timeout: float | None) -> None:
    connection.sock.settimeout(timeout)
    target = request.url.raw_path.decode("ascii")
    try:
        connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.raw:
            connection.putheader(name, value)
    except ValueError as error:
        raise httpx.LocalProtocolError(str(error), request=request) from error
    try:
        connection.endheaders()
        for chunk in request.stream:  # type: ignore[union-attr]
            connection.send(chunk)
    except TimeoutError as error:
        raise httpx.WriteTimeout(str(error), request=request) from error
    except OSError:
        pass  # a server that refuses a body answers before it has read all of it: the answer says why


def _read(
    connection: http.client.HTTPConnection, request: httpx.Request, timeout: float | None
) -> httpx.Response:
    connection.sock.settimeout(timeout)
    try:
        answer = connection.getresponse()
        body = answer.read()
    except TimeoutError as error:
        raise httpx.ReadTimeout(str(error), request=request) from error
    except OSError as error:
        raise httpx.ReadError(str(error), request=request) from error
    except http.client.HTTPException as error:
        raise httpx.RemoteProtocolError(str(error) or type(error).__name__, request=request) from error
    return httpx.Response(
        answer.status,
        headers=answer.getheaders(),
        content=body,
        extensions={"closes": answer.will_close},
    )
