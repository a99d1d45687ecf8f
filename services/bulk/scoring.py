"""Scoring rows with loaded rewards: the next batches are decoded and prepared while one is on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from rewardzoo.clients import wire
from rewardzoo.clients.images import Pixels, as_payload, decode_image
from rewardzoo.errors import ItemError
from rewardzoo.rewards import Batch, Outcome, RewardModel
from rewardzoo.services.bulk.rows import Row
from rewardzoo.services.device import is_fatal, is_out_of_memory
from rewardzoo.services.outcomes import plain


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row without its image, and what each reward, by name, made of it."""

    row: Row
    outcomes: Mapping[str, Outcome]


@dataclass(frozen=True, slots=True)
class _Items:
    """What the rewards take."""

    images: Sequence[Pixels]
    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.images)

    def part(self, start: int, stop: int) -> _Items:
        return _Items(self.images[start:stop], self.prompts[start:stop], self.metadata[start:stop])


@dataclass(frozen=True, slots=True)
class _Prepared:
    rows: Sequence[Row]
    errors: Mapping[int, ItemError]
    batches: Mapping[str, Sequence[tuple[_Items, Batch | None]]]


class RowScorer:
    """Scores rows with `models`, `batch_size` of them at a time (None: as each reward's spec has it).

    An image is decoded once for all rewards. `threads` batches are prepared ahead.
    """

    def __init__(
        self, models: Mapping[str, RewardModel], *, batch_size: int | None = None, threads: int = 1
    ) -> None:
        self.models = models
        self._limits = {name: batch_size or model.spec.max_batch for name, model in models.items()}
        self._rows_at_once = max(self._limits.values())
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "prepare")

    def score(self, rows: Iterable[Row]) -> Iterator[ScoredRow]:
        """Score rows, in their order; a row that cannot be scored has an `ItemError` from every reward.

        Raises:
            torch.AcceleratorError: the device is lost.
        """
        rows = iter(rows)
        ahead: deque[Future[_Prepared]] = deque()
        while True:
            while len(ahead) <= self._threads and (some := list(islice(rows, self._rows_at_once))):
                ahead.append(self._pool.submit(self._prepare, some))
            if not ahead:
                return
            yield from self._run(ahead.popleft().result())

    def _prepare(self, rows: Sequence[Row]) -> _Prepared:
        images: list[Pixels] = []
        good: list[Row] = []
        errors: dict[int, ItemError] = {}
        for i, row in enumerate(rows):
            try:
                if row.error:
                    raise ItemError(row.error)
                wire.check_prompt(row.prompt)
                payload = as_payload(row.image)
                images.append(decode_image(payload) if isinstance(payload, bytes) else payload)
            except ItemError as error:
                errors[i] = error
            else:
                good.append(row)
        items = _Items(images, [row.prompt for row in good], [row.metadata for row in good])
        batches = {name: list(self._batches(name, items)) for name in self.models}
        return _Prepared([replace(row, image=b"") for row in rows], errors, batches)

    def _batches(self, name: str, items: _Items) -> Iterator[tuple[_Items, Batch | None]]:
        size = self._limits[name]
        for start in range(0, len(items), size):
            part = items.part(start, start + size)
            try:
                yield part, self._batch(name, part)
            except Exception:
                yield part, None  # and `_outcomes` finds out which item it is

    def _batch(self, name: str, items: _Items) -> Batch:
        return self.models[name].prepare(items.images, items.prompts, items.metadata)

    def _run(self, prepared: _Prepared) -> Iterator[ScoredRow]:
        found = {
            name: iter([o for items, batch in batches for o in self._outcomes(name, items, batch)])
            for name, batches in prepared.batches.items()
        }
        for i, row in enumerate(prepared.rows):
            error = prepared.errors.get(i)
            yield ScoredRow(row, {name: error or next(outcomes) for name, outcomes in found.items()})

    def _outcomes(self, name: str, items: _Items, batch: Batch | None) -> list[Outcome]:
        """Run a batch; where that fails, run its halves, so that only the items at fault have an error."""
        try:
            batch = self._batch(name, items) if batch is None else batch
            return [plain(outcome) for outcome in self.models[name].run(batch)]
        except Exception as error:
            if is_fatal(error):
                raise
            if len(items) == 1:
                return [ItemError(f"{name} failed on this item: {error}")]
            half = len(items) // 2
            if is_out_of_memory(error):
                self._limits[name] = min(self._limits[name], half)
        return [
            *self._outcomes(name, items.part(0, half), None),
            *self._outcomes(name, items.part(half, len(items)), None),
        ]
