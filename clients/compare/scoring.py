"""All items of a store through a `Scorer`, chunk by chunk, and on again where it was stopped."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from rewardzoo.clients.compare.images import ImageReader
from rewardzoo.clients.compare.store import CHUNK, ScoreStore
from rewardzoo.clients.result import ScoreResult
from rewardzoo.clients.scorer import Scorer
from rewardzoo.errors import ItemError

# One chunk is scored while the next is read; more would only fill memory.
_AT_ONCE = 2


def score_all(
    store: ScoreStore,
    scorer: Scorer,
    rewards: Sequence[str],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Score what has no scores yet. Images are sent once for all rewards that lack a chunk.

    `on_progress` hears how many items are done, of how many. An item that cannot be scored keeps its error.

    Raises:
        ItemError: no image of a chunk could be scored: more likely the folder of images is wrong.
        RequestError, UnavailableError: as `Scorer.score`; what was scored is kept.
        ValueError: a reward is not the one that began, or another run is scoring here.
    """
    with store.locked(), ImageReader(store.root) as reader:
        todo = store.missing(rewards)
        done = store.info.items - sum(_size(store, chunk) for chunk in todo)
        on_progress(done, store.info.items)
        open_calls: deque[tuple[int, _Call]] = deque()
        try:
            for chunk, names in todo.items():
                open_calls.append((chunk, _Call(store, chunk, names, scorer, reader)))
                if len(open_calls) == _AT_ONCE:
                    done += _finish(store, *open_calls.popleft())
                    on_progress(done, store.info.items)
            while open_calls:
                done += _finish(store, *open_calls.popleft())
                on_progress(done, store.info.items)
        finally:
            for _, call in open_calls:
                call.future.cancel()


class _Call:
    """A chunk on its way: its images that could be read are with the scorer."""

    def __init__(
        self, store: ScoreStore, chunk: int, names: Sequence[str], scorer: Scorer, reader: ImageReader
    ) -> None:
        table = store.items(["prompt", "image", "metadata"], chunk=chunk).to_pylist()
        self.names, self.count = list(names), len(table)
        self.patience = scorer.patience
        self.unread: dict[int, str] = {}
        self.sent: list[int] = []
        images = []
        for i, row in enumerate(table):
            try:
                images.append(reader.open(row["image"]))
                self.sent.append(i)
            except ItemError as error:
                self.unread[i] = str(error)
        told = [json.loads(table[i]["metadata"] or "{}") for i in self.sent]
        self.future: Future[ScoreResult] = scorer.submit_result(
            images,
            [table[i]["prompt"] for i in self.sent],
            reward=self.names,
            metadata=told if any(told) else None,
        )

    def parts(self) -> Mapping[str, ScoreResult]:
        return self.future.result(self.patience).parts


def _finish(store: ScoreStore, chunk: int, call: _Call) -> int:
    """Wait for a chunk, keep its scores, and say how many items it has."""
    scores, errors, provenance = {}, {}, {}
    for name, part in call.parts().items():
        values = np.full(call.count, np.nan, np.float32)
        values[call.sent] = part.scores
        scores[name] = values
        errors[name] = call.unread | {call.sent[i]: str(error) for i, error in part.errors.items()}
        provenance[name] = part.provenance
    if all(np.isnan(values).all() for values in scores.values()):
        first = next(iter(errors[call.names[0]].values()), "no error was given")
        raise ItemError(
            f"none of the {call.count} items from row {chunk * CHUNK} of {store.folder / 'items.parquet'} "
            f"could be scored. The first: {first}"
        )
    store.write_scores(chunk, scores, errors, provenance)
    return call.count


def _size(store: ScoreStore, chunk: int) -> int:
    return min(CHUNK, store.info.items - chunk * CHUNK)
