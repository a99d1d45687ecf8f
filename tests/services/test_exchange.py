from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from rewardzoo.errors import DeadlineError, OverloadedError, RequestError
from rewardzoo.services.exchange import Deadline, answer, read_body, unless_gone

BODY = {"type": "http.request", "body": b"abc", "more_body": True}
GONE = {"type": "http.disconnect"}


def make_request(*messages: dict[str, Any]) -> Request:
    """A request that sends `messages` and then nothing more."""
    left = list(messages)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def test_an_upload_that_stalls_ends_at_the_deadline() -> None:
    with pytest.raises(DeadlineError, match="only 3 bytes"):
        asyncio.run(read_body(make_request(BODY), 100, Deadline(0.05)))


def test_an_upload_that_breaks_off_is_not_an_internal_error() -> None:
    response = asyncio.run(answer(read_body(make_request(BODY, GONE), 100, Deadline(5))))  # type: ignore[arg-type]
    assert response.status_code == 499


@pytest.mark.parametrize(("given", "least", "most"), [("2.5", 2, 2.5), ("90", 59, 60), (None, 59, 60)])
def test_a_request_says_how_long_it_waits_and_the_server_caps_it(
    given: str | None, least: float, most: float
) -> None:
    headers = [] if given is None else [(b"request-timeout", given.encode())]
    request = Request({"type": "http", "method": "POST", "headers": headers})
    assert least < Deadline.of(request, 60).left <= most


@pytest.mark.parametrize("given", ["0", "0.0", "-1", "1e3", "nan", "inf", "", "1s", "1.", "\u0661", "9" * 10])
def test_a_malformed_timeout_is_refused(given: str) -> None:
    headers = [(b"request-timeout", given.encode("utf-8"))]
    with pytest.raises(RequestError, match="Request-Timeout must be seconds above 0"):
        Deadline.of(Request({"type": "http", "method": "POST", "headers": headers}), 60)


def test_bytes_are_held_before_they_are_read_and_may_be_refused() -> None:
    asked: list[int] = []

    def hold(size: int) -> None:
        asked.append(size)
        if sum(asked) > 5:
            raise OverloadedError("full")

    part = {**BODY, "more_body": True}
    with pytest.raises(OverloadedError):
        asyncio.run(read_body(make_request(part, part, part), 100, Deadline(5), hold))
    assert asked == [0, 3, 3]


def test_work_is_cancelled_when_its_client_hangs_up() -> None:
    cancelled: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main() -> None:
        with pytest.raises(ClientDisconnect):
            await unless_gone(make_request(BODY, GONE), work())
        await asyncio.sleep(0)

    asyncio.run(main())
    assert cancelled == [True]


def test_the_result_or_error_of_the_work_is_passed_on() -> None:
    async def give() -> int:
        return 7

    async def fail() -> int:
        raise KeyError("x")

    assert asyncio.run(unless_gone(make_request(), give())) == 7
    with pytest.raises(KeyError):
        asyncio.run(unless_gone(make_request(), fail()))
