"""The transport over HTTP: one Open Inference Protocol request a part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from rewardzoo.clients import wire
from rewardzoo.clients.process import PerProcess
from rewardzoo.clients.retries import error_of, time_left
from rewardzoo.clients.server import Answer, Declared, ServerTransport, malformed
from rewardzoo.clients.sockets import Verify, direct, tls_context
from rewardzoo.clients.transport import Part
from rewardzoo.errors import DeadlineError, RequestError, UnavailableError

_CONNECT_TIMEOUT = 5.0
# A piece of the body that is smaller is sent with its neighbours.
_PIECE = 2**16
_TIMEOUT_HEADER = "Request-Timeout"
"""How many seconds the caller will still wait; a server that knows it drops what nobody waits for."""
_T = TypeVar("_T")


class HTTPTransport(ServerTransport):
    """Talks HTTP or HTTPS. Thread-safe.

    `token` goes out as a bearer token. `verify` and `downscale` are as in `RewardClient`. `transport` is
    httpx's own, for what is not plain TCP.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        verify: Verify = True,
        transport: httpx.BaseTransport | None = None,
        downscale: bool = False,
    ) -> None:
        super().__init__(downscale=downscale)
        self._url = url
        self._client = PerProcess(
            lambda: httpx.Client(
                base_url=url,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                verify=tls_context(verify) if url.startswith("https") else True,
                transport=transport or direct(url, verify),
            )
        )

    def ready(self, *, timeout: float) -> bool:
        """Say whether the server answers now and has its weights loaded."""
        try:
            return self._client().get("/v2/health/ready", timeout=timeout).is_success
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        if client := self._client.made():
            client.close()

    def send(self, declared: Declared, part: Part, deadline: float) -> Answer:
        """Have a part scored by one request."""
        header = {"id": part.id, "parameters": {"binary_data_output": True}}
        chunks, length = wire.encode(header, declared.inputs(part), key="inputs")
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(sum(map(len, chunks))),
            wire.HEADER: str(length),
            "X-Request-ID": part.id,
        }
        path = f"{_path(declared.model)}/infer"
        answer = self._send("POST", path, deadline, headers, _pieces(chunks))
        source = str(answer.url)
        try:
            length_told = wire.parse_json_length(answer.headers.get(wire.HEADER))
            message = wire.decode(answer.content, length_told, key="outputs")
        except wire.WireError as error:
            raise malformed(source, error) from error
        return Answer(message.tensors, message.parameters, str(message.header.get("model_name", "")), source)

    def index(self, deadline: float) -> list[dict[str, Any]]:
        """Return the server's models."""
        return self._json("POST", "/v2/repository/index", deadline, list)

    def metadata(self, model: str, deadline: float) -> dict[str, Any]:
        """Return a model's metadata."""
        return self._json("GET", _path(model), deadline, dict)

    def config(self, model: str, deadline: float) -> dict[str, Any]:
        """Return a model's configuration."""
        return self._json("GET", f"{_path(model)}/config", deadline, dict)

    def _json(self, method: str, path: str, deadline: float, kind: type[_T]) -> _T:
        answer = self._send(method, path, deadline)
        try:
            body = answer.json()
        except ValueError as error:
            raise RequestError(f"{answer.url} did not answer with JSON: {error}") from error
        if not isinstance(body, kind):
            raise RequestError(f"{answer.url} answered with {body!r:.80}, not a {kind.__name__}")
        return body

    def _send(
        self,
        method: str,
        path: str,
        deadline: float,
        headers: Mapping[str, str] | None = None,
        content: Iterator[wire.Chunk] | None = None,
    ) -> httpx.Response:
        """Send once; answer with a success or raise from `rewardzoo.errors`."""
        left = time_left(deadline, f"{method} {path}")
        timeout = httpx.Timeout(left, connect=min(left, _CONNECT_TIMEOUT))
        try:
            answer = self._client().request(
                method,
                path,
                headers={**(headers or {}), _TIMEOUT_HEADER: f"{max(left, 0.001):.3f}"},
                content=content,  # type: ignore[arg-type]  # memoryviews, which it passes on
                timeout=timeout,
            )
        except httpx.ReadTimeout as error:
            raise DeadlineError(f"no answer to {method} {error.request.url}") from error
        except httpx.LocalProtocolError as error:
            raise RequestError(f"{method} {path} cannot be sent: {error}") from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise UnavailableError(f"cannot reach {self._url}: {reason}") from error
        if not answer.is_success:
            raise _error(answer)
        return answer


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _pieces(chunks: Sequence[wire.Chunk]) -> Iterator[wire.Chunk]:
    """Yield `chunks`, the small ones of a row as one; the large ones are not copied."""
    small = bytearray()
    for chunk in chunks:
        if len(chunk) < _PIECE:
            small += chunk
            if len(small) < _PIECE:
                continue
        if small:
            yield bytes(small)
            small.clear()
        if len(chunk) >= _PIECE:
            yield chunk
    if small:
        yield bytes(small)


def _error(answer: httpx.Response) -> RequestError | UnavailableError:
    try:
        text = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = answer.text[:200] or answer.reason_phrase
    return error_of(
        answer.status_code,
        f"{text} (HTTP {answer.status_code} from {answer.url})",
        _seconds(answer.headers.get("Retry-After")),
    )


def _seconds(value: str | None) -> float | None:
    # The header may also hold a date, which servers of this kind do not send.
    return float(value) if value is not None and value.isascii() and value.isdigit() else None
