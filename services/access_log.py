"""Which request this is, on every line that is logged for it, and one line at its end."""

from __future__ import annotations

import logging
import time
import uuid
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders, State
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rewardzoo.services.gate import METRICS, OPEN

if TYPE_CHECKING:
    from rewardzoo.services.metrics import Metrics

logger = logging.getLogger("rewardzoo.access")
failures = logging.getLogger(__name__)

HEADER = "X-Request-ID"
_MAX_ID = 128
_MAX_PATH = 256
# Nginx's number for a caller that hung up before it had its answer.
_HUNG_UP = 499


@dataclass(slots=True)
class RequestRecord:
    """What is said of one request: `ok` of its `items` have a score, None as long as it is not known.

    `queue_seconds` is how long the last of them waited for its batch.
    """

    id: str
    method: str = ""
    path: str = ""
    remote: str = ""
    reward: str | None = None
    items: int | None = None
    ok: int | None = None
    queue_seconds: float | None = None
    bytes_in: int = 0
    status: int = _HUNG_UP
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return it as a line for reading."""
        scored = f" {self.reward}: {self.ok or 0} of {self.items} items," if self.reward else ""
        return (
            f"{self.remote} {self.method} {self.path} {self.status}{scored} "
            f"{self.bytes_in} bytes, {self.seconds:.3f} s [{self.id}]"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as the fields of a JSON object."""
        fields = asdict(self)
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in fields.items()}


_current: ContextVar[RequestRecord] = ContextVar("request_record")


def current_request() -> RequestRecord:
    """Return the record of the request that is being served here, or one that nobody reads."""
    return _current.get(None) or RequestRecord(uuid.uuid4().hex)


def current_id() -> str | None:
    """Return the id of the request that is being served here."""
    record = _current.get(None)
    return record.id if record else None


class AccessLog:
    """ASGI middleware: gives each request an id, says so in its answer, logs and counts it at its end.

    The id is the caller's `X-Request-ID` where that is one: printable ASCII without spaces, up to 128
    characters. Neither queries nor headers are logged, so that no secret is. An exception that nothing
    inside has answered is answered here, with the id. Probes that succeed are not logged. The metrics are
    those of `state.metrics`.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start = time.perf_counter()
        record = _record(scope)
        token = _current.set(record)
        started = False
        metrics: Metrics = self.state.metrics
        metrics.began()

        async def counted_receive() -> Message:
            message = await receive()
            record.bytes_in += len(message.get("body", b""))
            return message

        async def marked_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started, record.status = True, message["status"]
                MutableHeaders(scope=message)[HEADER] = record.id
            await send(message)

        try:
            await self.app(scope, counted_receive, marked_send)
        except Exception:
            record.status = 500
            failures.exception("request %s failed", record.id)
            if started:
                raise  # the server closes the connection, which is all that can still be said
            await internal_error()(scope, receive, marked_send)
        finally:
            record.seconds = time.perf_counter() - start
            # By the route's own pattern: a label for each path would be a series for each path.
            route = getattr(scope.get("route"), "path", "other")
            metrics.ended(route, record.status, record.seconds)
            if record.status != 200 or scope["path"] not in (*OPEN, METRICS):
                logger.info(record)
            _current.reset(token)


def internal_error() -> JSONResponse:
    """Return the answer to a request that failed for a reason of ours, which the log has."""
    return JSONResponse(
        {"error": f"internal error, request id {current_id()}: see the server's log"}, status_code=500
    )


def _record(scope: Scope) -> RequestRecord:
    client = scope.get("client")
    return RequestRecord(
        id=_valid(Headers(scope=scope).get(HEADER)) or uuid.uuid4().hex,
        method=scope["method"],
        path=quote(scope["path"], safe="/:@,;=+!$&'()*~")[:_MAX_PATH],  # a path can hold line breaks
        remote="{}:{}".format(*client) if client else "",
    )


def _valid(given: str | None) -> str | None:
    if given and len(given) <= _MAX_ID and all("!" <= letter <= "~" for letter in given):
        return given
    return None
