"""One call to a scorer while it is under way: its items, what has come back, and its future."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardzoo.clients.images import ImageLike, Payload, as_payload
from rewardzoo.clients.result import ScoreResult
from rewardzoo.clients.transport import Part, Reply
from rewardzoo.clients.wire import check_prompt
from rewardzoo.errors import DeadlineError, ItemError

Finish = Callable[[Mapping[str, ScoreResult]], Any]


class Call:
    """N items to be scored by R rewards before a deadline, in seconds of `time.monotonic()`.

    `future` gets what `finish` makes of the results by reward, or what it raises. Thread-safe, but that
    only one thread at a time may draw rows.
    """

    def __init__(
        self,
        rewards: tuple[str, ...],
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None,
        deadline: float,
        finish: Finish,
    ) -> None:
        self.rewards = rewards
        self.deadline = deadline
        self.future: Future[Any] = Future()
        self._images, self._prompts, self._metadata = images, prompts, metadata
        self._finish = finish
        self._sheets = [_Sheet(len(images)) for _ in rewards]
        self._lock = threading.Lock()
        self._next, self._flying, self._left = 0, 0, len(images)
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        return len(self._images)

    @property
    def over(self) -> bool:
        """Whether the call has ended, so that what is not in flight yet need not be sent."""
        return self._failure is not None or self.future.done()

    def draw(self) -> Row | None:
        """Return the next row that can be sent, or None when there are no more.

        A row that cannot be sent has its error then.
        """
        while self._next < len(self._images) and not self.over:
            if time.monotonic() >= self.deadline:
                self.fail(DeadlineError(f"{len(self) - self._next} of {len(self)} items were not even sent"))
                break
            at, self._next = self._next, self._next + 1
            try:
                check_prompt(self._prompts[at])
                payload = as_payload(self._images[at])
            except ItemError as error:
                self._refuse(at, error)
                continue
            note = None if self._metadata is None else json.dumps(self._metadata[at])
            return Row(self, at, payload, self._prompts[at], note)
        return None

    def sent(self, rows: int) -> None:
        """Note that so many rows are in flight."""
        with self._lock:
            self._flying += rows

    def landed(self, places: Mapping[int, int], replies: Sequence[Reply]) -> None:
        """Take the scores of rows, each at its place in the replies (one a reward)."""
        for sheet, reply in zip(self._sheets, replies, strict=True):
            sheet.write(places, reply)
        self._settle(landed=len(places), resolved=len(places))

    def lost(self, rows: int, error: BaseException) -> None:
        """Fail because rows in flight will not come back."""
        self.fail(error, landed=rows)

    def fail(self, error: BaseException, *, landed: int = 0) -> None:
        """End the call with `error` as soon as nothing of it is in flight any more."""
        with self._lock:
            self._failure = self._failure or error
        self._settle(landed=landed)

    def start(self) -> bool:
        """Say whether there is anything to send; a call without items is done at once."""
        if not self._images:
            self._settle()
        return bool(self._images)

    def _refuse(self, at: int, error: ItemError) -> None:
        for sheet in self._sheets:
            sheet.errors[at] = error
        self._settle(resolved=1)

    def _settle(self, *, landed: int = 0, resolved: int = 0) -> None:
        with self._lock:
            self._flying -= landed
            self._left -= resolved
            if self._flying or (self._left and self._failure is None):
                return
        # False where the caller has cancelled, or another thread was here first.
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        try:
            if self._failure is not None:
                raise self._failure
            results = [sheet.result() for sheet in self._sheets]
            self.future.set_result(self._finish(dict(zip(self.rewards, results, strict=True))))
        except BaseException as error:
            self.future.set_exception(error)


@dataclass(frozen=True)
class Row:
    """One item of a call, ready to be sent."""

    call: Call
    at: int
    payload: Payload
    prompt: str
    note: str | None

    @property
    def kind(self) -> object:
        """Rows of one kind may travel in one part."""
        form = "encoded" if isinstance(self.payload, bytes) else self.payload.shape
        return form, self.note is None

    @property
    def size(self) -> int:
        """How many bytes the image has."""
        return len(self.payload) if isinstance(self.payload, bytes) else self.payload.nbytes


def as_part(rows: Sequence[Row]) -> Part:
    """Return rows of one kind as a part."""
    notes = [row.note for row in rows if row.note is not None]
    return Part([row.payload for row in rows], [row.prompt for row in rows], notes or None)


def by_call(rows: Sequence[Row]) -> dict[Call, dict[int, int]]:
    """Return, for each call, which of its rows is at what place in `rows`."""
    found: dict[Call, dict[int, int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(row.call, {})[row.at] = place
    return found


class _Sheet:
    """What has come back of one reward."""

    def __init__(self, count: int) -> None:
        self.scores = np.full(count, np.nan, dtype=np.float32)
        self.errors: dict[int, ItemError] = {}
        self.details: list[Mapping[str, Any]] = [{} for _ in range(count)]
        self.provenance: list[Mapping[str, Any]] = []

    def write(self, places: Mapping[int, int], reply: Reply) -> None:
        for row, place in places.items():
            if place not in reply.errors and math.isfinite(reply.scores[place]):
                self.scores[row] = reply.scores[place]
                self.details[row] = reply.details.get(place, {})
            else:
                text = reply.errors.get(place, f"scored {reply.scores[place]}, without a reason")
                self.errors[row] = ItemError(text)
        if reply.provenance not in self.provenance:
            self.provenance.append(reply.provenance)

    def result(self) -> ScoreResult:
        provenance: dict[str, Any] = {}
        for each in self.provenance:
            _merge(provenance, each)
        return ScoreResult(self.scores, dict(sorted(self.errors.items())), provenance, tuple(self.details))


def _merge(provenance: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        known = provenance.setdefault(key, value)
        if known == value or (isinstance(known, list) and value in known):
            continue
        provenance[key] = [*known, value] if isinstance(known, list) else [known, value]
