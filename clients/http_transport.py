"""The transport over HTTP: one Open Inference Protocol request a part, repeated where safe."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay

from rewardzoo.clients import wire
from rewardzoo.clients.transport import Part, Reply
from rewardzoo.errors import (
    DeadlineError,
    ItemError,
    NotServedError,
    OverloadedError,
    RequestError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)

_CONNECT_TIMEOUT = 5.0
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
# One `bytes` object as a body is ten times slower in httpx than pieces of this size.
_PIECE = 2**20
_T = TypeVar("_T")


@dataclass(frozen=True)
class ServedReward:
    """A reward that a server hosts; `ready` once its weights are loaded."""

    name: str
    ready: bool
    provenance: Mapping[str, Any] = field(default_factory=dict)


class HTTPTransport:
    """Talks to a rewardzoo service, or to any server of the Open Inference Protocol. Thread-safe.

    `token` goes out as a bearer token. `transport` is httpx's own, for what is not plain TCP.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"url must look like http://host:3000, got {url!r}")
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            transport=transport,
        )
        # Servers differ in whether a text an item is [N] or [N,1]; their metadata says which.
        self._columns: dict[str, frozenset[str]] = {}

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        """Score a part; see `Transport`."""
        chunks, length = _request(part, self._columns_of(model, deadline))
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(sum(map(len, chunks))),
            wire.HEADER: str(length),
        }

        def attempt() -> httpx.Response:
            return self._send("POST", f"{_path(model)}/infer", deadline, headers, _pieces(chunks))

        return _reply(retrying(attempt, deadline), len(part.rows))

    def rewards(self, *, deadline: float) -> list[ServedReward]:
        """List what the server hosts."""
        found = []
        for entry in self._json("POST", "/v2/repository/index", deadline, list):
            ready = entry.get("state", "READY") == "READY"
            metadata = self._json("GET", _path(entry["name"]), deadline, dict) if ready else {}
            found.append(ServedReward(entry["name"], ready, metadata.get("parameters", {})))
        return found

    def ready(self, *, timeout: float) -> bool:
        """Say whether the server answers now and has its weights loaded."""
        try:
            return self._http.get("/v2/health/ready", timeout=timeout).is_success
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _columns_of(self, model: str, deadline: float) -> frozenset[str]:
        if model not in self._columns:
            metadata = self._json("GET", _path(model), deadline, dict)
            self._columns[model] = frozenset(
                tensor["name"] for tensor in metadata.get("inputs", []) if len(tensor.get("shape", [])) == 2
            )
        return self._columns[model]

    def _json(self, method: str, path: str, deadline: float, kind: type[_T]) -> _T:
        answer = retrying(lambda: self._send(method, path, deadline), deadline)
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
        content: Iterator[bytes] | None = None,
    ) -> httpx.Response:
        """Send once; answer with a success or raise from `rewardzoo.errors`."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"no time left for {method} {path}")
        timeout = httpx.Timeout(left, connect=min(left, _CONNECT_TIMEOUT))
        try:
            answer = self._http.request(method, path, headers=headers, content=content, timeout=timeout)
        except httpx.ReadTimeout as error:
            raise DeadlineError(f"no answer to {method} {error.request.url}") from error
        except httpx.LocalProtocolError as error:
            raise RequestError(f"{method} {path} cannot be sent: {error}") from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise UnavailableError(f"cannot reach {self._http.base_url}: {reason}") from error
        if not answer.is_success:
            raise _error(answer)
        return answer


def retrying(attempt: Callable[[], _T], deadline: float) -> _T:
    """Call `attempt` until it does not raise `UnavailableError`, or no wait fits before `deadline`.

    Waits are exponential with full jitter, and never shorter than the server's `retry_after`.

    Raises:
        UnavailableError: the last one, with how often and how long it was tried.
    """
    start = time.monotonic()
    tries = Retrying(
        retry=retry_if_exception_type(UnavailableError),
        wait=_wait,
        stop=stop_before_delay(max(deadline - start, 0)),
        reraise=True,
    )
    try:
        return tries(attempt)
    except UnavailableError as error:
        count = tries.statistics["attempt_number"]
        spent = time.monotonic() - start
        raise type(error)(
            f"{error} (tried {count} time{'s' * (count > 1)} in {spent:.1f} s)", error.retry_after
        ) from error


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = getattr(error, "retry_after", None) or 0.0
    backoff = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (state.attempt_number - 1))
    return float(asked + random.uniform(0, backoff))


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _request(part: Part, columns: frozenset[str]) -> tuple[list[wire.Chunk], int]:
    encoded = [p for p in part.payloads if isinstance(p, bytes)]
    images = wire.bytes_tensor(encoded) if encoded else np.stack(part.payloads)
    tensors = {wire.IMAGES: images, wire.PROMPTS: wire.bytes_tensor(part.prompts)}
    if part.metadata is not None:
        tensors[wire.METADATA] = wire.bytes_tensor(part.metadata)
    for name in columns & tensors.keys():
        tensors[name] = tensors[name][:, None]
    return wire.encode({"parameters": {"binary_data_output": True}}, tensors, key="inputs")


def _pieces(chunks: Sequence[wire.Chunk]) -> Iterator[bytes]:
    small = bytearray()
    for chunk in chunks:
        if small and len(small) + len(chunk) > _PIECE:
            yield bytes(small)
            small.clear()
        if len(chunk) <= _PIECE:
            small += chunk
        else:
            for start in range(0, len(chunk), _PIECE):
                yield bytes(chunk[start : start + _PIECE])
    if small:
        yield bytes(small)


def _reply(answer: httpx.Response, count: int) -> Reply:
    try:
        length = wire.parse_json_length(answer.headers.get(wire.HEADER))
        message = wire.decode(answer.content, length, key="outputs")
        scores = _column(message, wire.SCORES, "f")
        errors = _column(message, wire.ERRORS, "O")
        objects = _column(message, wire.DETAILS, "O")  # not every server of the protocol has them
        details = {i: wire.decode_object(raw, "details") for i, raw in enumerate(objects) if raw}
    except (wire.WireError, ItemError) as error:
        raise RequestError(f"{answer.url} answered with a malformed message: {error}") from error
    if len(scores) != count or not {len(errors), len(objects)} <= {0, count}:
        raise RequestError(
            f"{answer.url} answered with {len(scores)} scores, {len(errors)} errors and {len(objects)} "
            f"details for {count} items"
        )
    texts = {i: raw.decode(errors="replace") for i, raw in enumerate(errors) if raw}
    return Reply(scores, texts, message.parameters, details)


def _column(message: wire.Message, name: str, kind: str) -> list[Any]:
    if name not in message.tensors:
        return []
    tensor = wire.per_item(message.tensors[name], name)
    if tensor.dtype.kind != kind:
        raise wire.WireError(f"tensor {name!r} cannot be of dtype {tensor.dtype}")
    return list(tensor.tolist())


def _error(answer: httpx.Response) -> RequestError | UnavailableError:
    try:
        text = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = answer.text[:200] or answer.reason_phrase
    text = f"{text} (HTTP {answer.status_code} from {answer.url})"
    kinds: dict[int, type[RequestError]] = {
        401: UnauthorizedError,
        403: UnauthorizedError,
        404: NotServedError,
        413: TooLargeError,
    }
    status = answer.status_code
    if status in (429, 503):
        return OverloadedError(text, _seconds(answer.headers.get("Retry-After")))
    if status == 504:
        return DeadlineError(text)
    if status >= 500:
        return UnavailableError(text)
    return kinds.get(status, RequestError)(text)


def _seconds(value: str | None) -> float | None:
    # The header may also hold a date, which servers of this kind do not send.
    return float(value) if value is not None and value.isascii() and value.isdigit() else None
