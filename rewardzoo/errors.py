"""Every error that rewardzoo raises on purpose.

RewardZooError
├── UnknownRewardError       no such reward, or a name that could mean several (also a LookupError)
├── WeightsError             weights missing, unreadable or not what they should be
├── ItemError                one image-prompt pair cannot be scored; its neighbours are not touched
├── ItemsFailedError         some items of a call failed; carries every score that was reached
├── RequestError             the server refused the request; repeating it cannot help
│   ├── UnauthorizedError    no token, or a wrong one (401)
│   ├── NotServedError       the server does not host that reward (404; also a LookupError)
│   └── TooLargeError        the body is over the server's limit (413)
└── UnavailableError         the server could not answer now; repeating is safe
    ├── OverloadedError      its queue is full (429, 503)
    └── DeadlineError        no answer within the time allowed (504, or the client's own clock)
MissingExtraError            an optional dependency is not installed (an ImportError)
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewardzoo.clients import ScoreResult


class RewardZooError(Exception):
    """Root of the tree."""


class UnknownRewardError(RewardZooError, LookupError):
    """No reward of that name, or several."""


class WeightsError(RewardZooError):
    """Weights are missing, unreadable or not what the spec says they are."""


class ItemError(RewardZooError):
    """One image-prompt pair cannot be scored. The message says why and what to do."""


class ItemsFailedError(RewardZooError):
    """Some items failed.

    `errors` maps an item's index to its `ItemError`; `result` holds all scores, NaN where an item failed.
    """

    def __init__(self, errors: Mapping[int, ItemError], result: ScoreResult) -> None:
        self.errors = dict(errors)
        self.result = result
        shown = "; ".join(f"item {i}: {e}" for i, e in list(self.errors.items())[:3])
        more = f"; and {len(self.errors) - 3} more" if len(self.errors) > 3 else ""
        super().__init__(
            f"{len(self.errors)} of {len(result.scores)} items failed: {shown}{more}. "
            "The other scores are in `.result`; pass on_error='nan' to get NaN instead of this error."
        )


class RequestError(RewardZooError):
    """The server refused the request; repeating it cannot help."""


class UnauthorizedError(RequestError):
    """No token, or a wrong one."""


class NotServedError(RequestError, LookupError):
    """The server does not host that reward."""


class TooLargeError(RequestError):
    """The body is over the server's limit."""


class UnavailableError(RewardZooError):
    """The server could not answer now; repeating is safe. `retry_after` is its own hint in seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OverloadedError(UnavailableError):
    """The server's queue is full."""


class DeadlineError(UnavailableError):
    """No answer within the time allowed."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed."""


def require(module: str, extra: str) -> None:
    """Raise `MissingExtraError` when `module`, which the extra `extra` brings, is not installed."""
    if find_spec(module) is None:
        raise MissingExtraError(
            f"this needs the package {module!r}, which is not installed: pip install 'rewardzoo[{extra}]'",
            name=module,
        )
