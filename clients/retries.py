"""What a server's refusal means, and when to ask again: the same for every transport."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay

from rewardzoo.errors import (
    DeadlineError,
    NotServedError,
    OverloadedError,
    RequestError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
_KINDS: dict[int, type[RequestError]] = {
    401: UnauthorizedError,
    403: UnauthorizedError,
    404: NotServedError,
    413: TooLargeError,
}
# Triton says so with 404 of a model that it is loading anew, or unloading on its way out.
_PASSING = "has no available versions"
_T = TypeVar("_T")


def error_of(status: int, text: str, retry_after: float | None = None) -> RequestError | UnavailableError:
    """Return the error that an HTTP status means, or another transport's equivalent of it."""
    if status in (429, 503):
        return OverloadedError(text, retry_after)
    if status == 504:
        return DeadlineError(text)
    if status >= 500 or _PASSING in text:
        return UnavailableError(text)
    return _KINDS.get(status, RequestError)(text)


def time_left(deadline: float, what: str) -> float:
    """Return the seconds until `deadline`, of `time.monotonic()`.

    Raises:
        DeadlineError: there are none left for `what`.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineError(f"no time left for {what}")
    return left


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
