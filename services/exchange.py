"""One HTTP exchange of any endpoint: a bounded body in, every failure out as `{"error": …}`."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import zlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from rewardzoo.clients.wire import TooManyTextsError, WireError
from rewardzoo.errors import (
    DeadlineError,
    NotServedError,
    OverloadedError,
    RequestError,
    TooLargeError,
    UnavailableError,
)
from rewardzoo.services.access_log import current_id, internal_error

logger = logging.getLogger(__name__)
T = TypeVar("T")

_STATUS: dict[type[Exception], int] = {
    NotServedError: 404,
    TooLargeError: 413,
    TooManyTextsError: 413,
    RequestError: 400,
    WireError: 400,
    DeadlineError: 504,
    OverloadedError: 503,
    UnavailableError: 503,
}


REQUEST_TIMEOUT = "Request-Timeout"
"""HTTP header: for how many seconds, a decimal number, the caller is going to wait for the answer."""


class Deadline:
    """The end of the time that an exchange may take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @classmethod
    def of(cls, request: Request, most: float) -> Self:
        """Return what the header `Request-Timeout` asks for, or `most` seconds where that is less.

        Raises:
            RequestError: it is not a decimal number above 0.
        """
        given = request.headers.get(REQUEST_TIMEOUT)
        if given is None:
            return cls(most)
        if not (re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", given) and float(given)):
            raise RequestError(f"{REQUEST_TIMEOUT} must be seconds above 0, e.g. 2.5, got {given!r:.40}")
        return cls(min(most, float(given)))

    @property
    def left(self) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self._end - time.monotonic())


async def answer(work: Awaitable[Response]) -> Response:
    """Return the response of `work`, or the one that its exception means."""
    try:
        return await work
    except tuple(_STATUS) as error:
        status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
        wait = getattr(error, "retry_after", None)
        headers = None if wait is None else {"Retry-After": str(math.ceil(wait))}
        return JSONResponse({"error": str(error)}, status, headers)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads it; access logs know the number from nginx
    except Exception:
        logger.exception("request %s failed", current_id())
        return internal_error()


async def read_body(
    request: Request, limit: int, deadline: Deadline, hold: Callable[[int], None] = lambda _: None
) -> bytearray | bytes:
    """Read the body, decompressed where it is gzip or deflate.

    `hold` is told how many bytes more the request is going to take, before they are read; it may refuse them.

    It goes into one buffer of the declared length: `Request.body` keeps every chunk and joins them,
    which costs three times as much on bodies of many megabytes.

    Raises:
        TooLargeError: over `limit` bytes, as sent or decompressed.
        DeadlineError: not all of it came in time.
        RequestError: a broken or unknown compression.
    """
    declared = _declared(request.headers.get("content-length", "0"))
    _check_size(declared, limit)
    hold(declared)
    body = bytearray(declared)
    at = 0
    try:
        async with asyncio.timeout(deadline.left):
            async for chunk in request.stream():
                _check_size(at + len(chunk), limit)
                hold(max(0, at + len(chunk) - len(body)))
                body[at : at + len(chunk)] = chunk  # grows the buffer where no length was declared
                at += len(chunk)
    except TimeoutError:
        raise DeadlineError(f"only {at} bytes of the body had come when the time was up") from None
    del body[at:]
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise RequestError(f"Content-Encoding {encoding!r:.40} is not known here: use gzip or deflate")
    plain = await asyncio.to_thread(_inflate, body, limit)
    hold(max(0, len(plain) - len(body)))
    return plain


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, which is cancelled when the client hangs up.

    The request's body must have been read.

    Raises:
        ClientDisconnect: it hung up.
    """
    task = asyncio.create_task(work)
    hangup = asyncio.create_task(_hangup(request))
    try:
        await asyncio.wait({task, hangup}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        hangup.cancel()


async def _hangup(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _declared(length: str) -> int:
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        raise RequestError(f"Content-Length must be a number of bytes, got {length!r:.40}")
    return int(length)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise TooLargeError(
            f"the body has {size:,} bytes or more, the limit is {limit:,}: "
            "send fewer images at once, or raise max_body_mb on the server"
        )


def _inflate(body: bytearray, limit: int) -> bytes:
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # | 32: gzip or zlib, told by its header
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(f"the compressed body is damaged: {error}") from error
    _check_size(len(plain), limit)
    if not inflater.eof or inflater.unused_data:
        raise RequestError("the compressed body is cut short or has bytes behind its end")
    return plain
