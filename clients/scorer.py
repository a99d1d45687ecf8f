"""`score(images, prompts)`, whoever does the scoring: plan a call, run it, merge the replies."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewardzoo.clients.images import ImageLike, Payload, TorchTensor, as_payload
from rewardzoo.clients.result import ScoreResult
from rewardzoo.clients.transport import Part, Reply, Transport
from rewardzoo.clients.wire import check_prompt
from rewardzoo.errors import ItemError, ItemsFailedError

MAX_PART_ITEMS = 64
MAX_PART_BYTES = 32 * 2**20

Images = Iterable[ImageLike] | NDArray[Any] | TorchTensor
"""Several images: a sequence of them, an array (N, H, W, C) or a torch tensor (N, C, H, W)."""
Metadata = Sequence[Mapping[str, Any]]


class Scorer:
    """What `RewardClient` and `LocalRewards` share, and what a trainer should ask for. Thread-safe.

    `timeout` is how many seconds one call may take in all; at most `max_in_flight` parts of it are
    with the transport at a time.
    """

    def __init__(self, transport: Transport, *, timeout: float, max_in_flight: int) -> None:
        if not timeout > 0 or max_in_flight < 1:
            raise ValueError(f"timeout must be > 0 and max_in_flight >= 1, got {timeout} and {max_in_flight}")
        self._transport = transport
        self._timeout = timeout
        self._max_in_flight = max_in_flight

    def score(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: str,
        metadata: Metadata | None = None,
        on_error: Literal["raise", "nan"] = "raise",
    ) -> NDArray[np.float32]:
        """Score N image-prompt pairs: float32 (N,) in the reward's raw scale, in their order.

        `prompts` is one text an image, or one for all. `metadata` is one JSON object an item, for
        rewards that ask for it. With `on_error="nan"` an item that cannot be scored is NaN.

        Raises:
            ItemsFailedError: some items could not be scored; it carries the other scores.
            RequestError, UnavailableError: the call as a whole failed (see `rewardzoo.errors`).
            ValueError: the lengths of the arguments differ.
        """
        if on_error not in ("raise", "nan"):
            raise ValueError(f"on_error must be 'raise' or 'nan', got {on_error!r}")
        result = self.score_result(images, prompts, reward=reward, metadata=metadata)
        if result.errors and on_error == "raise":
            raise ItemsFailedError(result.errors, result)
        return result.scores

    def score_result(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: str,
        metadata: Metadata | None = None,
    ) -> ScoreResult:
        """Score like `score`, and return item errors, details and provenance beside the scores.

        Raises:
            RequestError, UnavailableError, ValueError: as `score`; never for a single item.
        """
        items = _as_list(images)
        texts = [prompts] * len(items) if isinstance(prompts, str) else list(prompts)
        _check_lengths(len(items), len(texts), metadata)
        deadline = time.monotonic() + self._timeout
        scores = np.full(len(items), np.nan, dtype=np.float32)
        errors: dict[int, ItemError] = {}
        details: list[Mapping[str, Any]] = [{} for _ in items]
        provenance: dict[str, Any] = {}
        for part, reply in self._run(_plan(items, texts, metadata, errors), reward, deadline):
            for i, row in enumerate(part.rows):
                if i not in reply.errors and math.isfinite(reply.scores[i]):
                    scores[row] = reply.scores[i]
                    details[row] = reply.details.get(i, {})
                else:
                    errors[row] = ItemError(
                        reply.errors.get(i, f"scored {reply.scores[i]}, without a reason")
                    )
            _merge(provenance, reply.provenance)
        return ScoreResult(scores, dict(sorted(errors.items())), provenance, tuple(details))

    def close(self) -> None:
        """Free connections or models."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, parts: Iterator[Part], model: str, deadline: float) -> Iterator[tuple[Part, Reply]]:
        """Send parts as slots become free, so that no more of them than that are in memory.

        After a failure no more are sent, and it is raised when those in flight have ended.
        """
        if self._max_in_flight == 1:
            for part in parts:
                yield part, self._transport.infer(model, part, deadline=deadline)
            return
        flying: dict[Future[Reply], Part] = {}
        with ThreadPoolExecutor(self._max_in_flight, "rewardzoo") as pool:
            for part in parts:
                if len(flying) == self._max_in_flight:
                    for done in wait(flying, return_when=FIRST_COMPLETED).done:
                        yield flying.pop(done), done.result()
                future = pool.submit(self._transport.infer, model, part, deadline=deadline)
                flying[future] = part
            for future, part in flying.items():
                yield part, future.result()


def _plan(
    images: Sequence[ImageLike],
    prompts: Sequence[str],
    metadata: Metadata | None,
    errors: dict[int, ItemError],
) -> Iterator[Part]:
    """Yield parts as they fill up; an item that cannot be sent goes to `errors` instead."""
    open_rows: dict[object, list[int]] = {}
    payloads: dict[int, Payload] = {}

    def part(rows: list[int]) -> Part:
        return Part(
            rows=tuple(rows),
            payloads=[payloads.pop(r) for r in rows],
            prompts=[prompts[r] for r in rows],
            metadata=None if metadata is None else [json.dumps(metadata[r]) for r in rows],
        )

    for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        try:
            check_prompt(prompt)
            payload = as_payload(image)
        except ItemError as error:
            errors[i] = error
            continue
        group = "encoded" if isinstance(payload, bytes) else payload.shape
        rows = open_rows.setdefault(group, [])
        size = sum(_size(payloads[r]) for r in rows) + _size(payload)
        if rows and (len(rows) == MAX_PART_ITEMS or size > MAX_PART_BYTES):
            yield part(rows)
            rows = open_rows[group] = []
        rows.append(i)
        payloads[i] = payload
    for rows in open_rows.values():
        yield part(rows)


def _size(payload: Payload) -> int:
    return len(payload) if isinstance(payload, bytes) else payload.nbytes


def _as_list(images: Images) -> list[ImageLike]:
    if isinstance(images, str | Path | bytes | Image.Image):
        raise ValueError(f"images must be a sequence, got one {type(images).__name__}: use [image]")
    if isinstance(images, np.ndarray | TorchTensor):
        if images.ndim != 4:
            raise ValueError(
                "images as one array must be (N, H, W, C), as one tensor (N, C, H, W); "
                f"got {images.ndim} dimensions. For a single image use [image]"
            )
        if isinstance(images, TorchTensor):
            images = images.detach().cpu()  # one copy from the device instead of one an image
        return [images[i] for i in range(len(images))]
    return list(images)


def _check_lengths(images: int, prompts: int, metadata: Metadata | None) -> None:
    if images != prompts:
        raise ValueError(f"one prompt an image, got {images} images and {prompts} prompts")
    if metadata is not None and len(metadata) != images:
        raise ValueError(f"one metadata an image, got {images} images and {len(metadata)} metadata")


def _merge(provenance: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        known = provenance.setdefault(key, value)
        if known == value or (isinstance(known, list) and value in known):
            continue
        provenance[key] = [*known, value] if isinstance(known, list) else [known, value]
