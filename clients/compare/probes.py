"""How far scores move when a picture or its prompt is changed in ways that make nothing better."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardzoo.clients.compare.perturbations import Probe
from rewardzoo.clients.images import ImageLike, Pixels, as_payload, decode_image
from rewardzoo.clients.result import ScoreResult
from rewardzoo.clients.scorer import Scorer
from rewardzoo.errors import ItemError

logger = logging.getLogger(__name__)

_BATCH = 32
# So many batches are with the scorer while the next one is made; with 1024x1024 pixels each has 100 MB.
_AHEAD = 2


@dataclass(frozen=True)
class ProbeItem:
    """A picture with its prompt. Pictures of one `prompt_id` are candidates of each other."""

    id: str
    prompt: str
    image: Any
    """An `ImageLike`, or what `open_image` makes one of."""
    prompt_id: str = ""
    """By default the prompt itself."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What rewards are told beside the prompt; nothing where a probe changes the prompt."""


@dataclass(frozen=True)
class ProbeScores:
    """The scores of N pictures by R rewards, as they are and under P probes, raw, NaN where there is none.

    `applied` says which probe had something to change in which picture: where it did and the score is NaN
    all the same, the reward failed.
    """

    rewards: tuple[str, ...]
    probes: tuple[Probe, ...]
    items: tuple[str, ...]
    prompt_ids: tuple[str, ...]
    original: NDArray[np.float32]
    """(N, R)"""
    probed: NDArray[np.float32]
    """(P, N, R)"""
    applied: NDArray[np.bool_]
    """(P, N)"""
    seed: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)


def score_probes(
    scorer: Scorer,
    rewards: Sequence[str],
    items: Sequence[ProbeItem],
    probes: Sequence[Probe],
    *,
    seed: int = 0,
    batch: int = _BATCH,
    open_image: Callable[[Any], ImageLike] = lambda image: image,
    progress: Callable[[int], object] = lambda scored: None,
) -> ProbeScores:
    """Score every item as it is and under each probe, by all rewards.

    Pictures are loaded `batch` at a time and forgotten again. `progress` is told how many pictures were
    scored since it was last called. A scorer with a cache makes this resumable.

    Raises:
        ValueError: no reward, no item, or ids or probes' names that are not unique.
        RequestError, UnavailableError: as `Scorer.score`; a single picture's failure leaves its scores NaN.
    """
    _check(rewards, items, probes)
    provenance: dict[str, Any] = {}
    scored = ProbeScores(
        tuple(rewards),
        tuple(probes),
        tuple(item.id for item in items),
        tuple(item.prompt_id or item.prompt for item in items),
        np.full((len(items), len(rewards)), np.nan, np.float32),
        np.full((len(probes), len(items), len(rewards)), np.nan, np.float32),
        np.zeros((len(probes), len(items)), np.bool_),
        seed,
        provenance,
    )
    waiting: deque[tuple[int, list[int], Future[ScoreResult]]] = deque()

    def collect() -> None:
        at, rows, future = waiting.popleft()
        result = future.result(scorer.patience)
        if at < 0:
            scored.original[rows] = result.scores
        else:
            scored.probed[at, rows] = result.scores
            scored.applied[at, rows] = True
        provenance.update(result.provenance)
        progress(len(rows))

    for at, rows, images, prompts in _batches(items, probes, seed, batch, open_image):
        told = [items[row].metadata for row in rows] if at < 0 or probes[at].changes == "image" else []
        future = scorer.submit_result(
            images, prompts, reward=list(rewards), metadata=told if any(told) else None
        )
        waiting.append((at, rows, future))
        if len(waiting) > _AHEAD:
            collect()
    while waiting:
        collect()
    return scored


def _check(rewards: Sequence[str], items: Sequence[ProbeItem], probes: Sequence[Probe]) -> None:
    if not rewards or not items:
        raise ValueError(f"probing takes rewards and pictures, got {len(rewards)} and {len(items)}")
    for what, names in (("ids", [item.id for item in items]), ("probes", [probe.name for probe in probes])):
        name, count = Counter(names).most_common(1)[0] if names else ("", 0)
        if count > 1:
            raise ValueError(f"{what} must be unique, but {name!r} is there {count} times")


def _batches(
    items: Sequence[ProbeItem],
    probes: Sequence[Probe],
    seed: int,
    batch: int,
    open_image: Callable[[Any], ImageLike],
) -> Iterator[tuple[int, list[int], list[Pixels], list[str]]]:
    """Yield what is to be scored: the probe's place (-1: as it is), the items' places, images and prompts."""
    for start in range(0, len(items), batch):
        images: dict[int, Pixels] = {}
        for row in range(start, min(start + batch, len(items))):
            try:
                images[row] = pixels_of(open_image(items[row].image))
            except ItemError as error:
                logger.warning("%s is left out: %s", items[row].id, error)
        if not images:
            continue
        yield -1, list(images), list(images.values()), [items[row].prompt for row in images]
        for at, probe in enumerate(probes):
            changed = {
                row: pair
                for row, image in images.items()
                if (pair := probe(image, items[row].prompt, items[row].id, seed)) is not None
            }
            if changed:
                pictures, prompts = zip(*changed.values(), strict=True)
                yield at, list(changed), list(pictures), list(prompts)


def pixels_of(image: ImageLike) -> Pixels:
    """Decode an image to RGB pixels (H, W, 3).

    Raises:
        ItemError: it cannot be read.
    """
    payload = as_payload(image)
    return decode_image(payload) if isinstance(payload, bytes) else payload
