"""One reward of a server: its model while it is loaded, the stages of scoring, its state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rewardzoo.clients.images import Pixels, decode_image, size_of
from rewardzoo.errors import ItemError, UnavailableError
from rewardzoo.services.batcher import Batcher, Item
from rewardzoo.services.exchange import Deadline
from rewardzoo.services.outcomes import plain
from rewardzoo.services.workers import Encoded

if TYPE_CHECKING:
    from rewardzoo.rewards import Batch, Outcome, RewardModel, RewardSpec, Score, Variant
    from rewardzoo.rewards._batch import Part
    from rewardzoo.services.pool import Pool
    from rewardzoo.services.workers import Workers

State = Literal["READY", "LOADING", "UNAVAILABLE"]
"""As in the index of the protocol's model repository."""


class Scoring:
    """The stages of a batch of one model."""

    def __init__(self, model: RewardModel, workers: Workers) -> None:
        self.model, self.workers = model, workers

    def prepare(self, items: Sequence[Item]) -> list[Part | ItemError]:
        """Decode and preprocess, item by item in the workers' threads."""
        return self.model.prepare_items(
            _Pictures(items),
            [item.prompt for item in items],
            [item.metadata for item in items],
            each=self.workers.each,
        )

    def collate(self, parts: Sequence[Part]) -> Batch:
        """Make the batch and begin to copy it to the device."""
        return self.model.stage(self.model.collate_parts(parts))

    def run(self, batch: Batch) -> list[Outcome]:
        """Score it, details as JSON has them."""
        return [plain(outcome) for outcome in self.model.run(batch)]


class _Pictures(Sequence[Pixels]):
    """The images of items, each decoded when it is asked for, in whichever thread asks."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Pixels:  # type: ignore[override]  # nobody asks for slices
        image = self._items[index].image
        if isinstance(image, Encoded):
            return image.pixels()
        return decode_image(image) if isinstance(image, bytes) else image


@dataclass(eq=False)
class Loading:
    """A load under way, or the last one: its task, and how many requests wait for it or just have."""

    task: asyncio.Task[None]
    waiters: int = 0


@dataclass(eq=False)
class HostedReward:
    """A reward that a server has, loaded or not. `pool` loads it when it is asked for.

    `state` and `reason` are what the repository's index says. `wanted` is False once it was unloaded by
    request; until it is loaded by request it is refused.
    """

    name: str
    spec: RewardSpec
    variant: Variant
    read: Callable[[], RewardModel]
    """Loads the model; called in a thread."""
    pool: Pool
    pinned: bool = False
    state: State = "UNAVAILABLE"
    reason: str = "not loaded yet: the first request loads it"
    wanted: bool = True
    draining: bool = False
    nbytes: int = 0
    """What the weights take, known once they were loaded."""
    last_used: float = 0.0
    scored: int = 0
    """Items that it answered so far."""
    loaded_model: RewardModel | None = None
    loaded_batcher: Batcher[Part, Batch, Score] | None = None
    _provenance: Mapping[str, str] = field(default_factory=dict)
    loaded_by: Loading | None = None
    _active: int = 0
    _left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def model(self) -> RewardModel:
        """The model.

        Raises:
            UnavailableError: it is not loaded.
        """
        if self.loaded_model is None:
            raise UnavailableError(f"{self.name} is not loaded: {self.reason}", retry_after=1)
        return self.loaded_model

    @property
    def batcher(self) -> Batcher[Part, Batch, Score]:
        """What feeds the model. Raises as `model`."""
        if self.loaded_batcher is None:
            raise UnavailableError(f"{self.name} is not loaded: {self.reason}", retry_after=1)
        return self.loaded_batcher

    @property
    def ready(self) -> bool:
        """Whether it is loaded and takes requests now."""
        batcher = self.loaded_batcher
        return self.state == "READY" and not self.draining and batcher is not None and batcher.failure is None

    @property
    def shown_state(self) -> State:
        """The state as others see it: a model whose device is lost is not there."""
        return "UNAVAILABLE" if self.state == "READY" and not self.ready else self.state

    @property
    def waiting(self) -> int:
        """How many items stand in its queue."""
        return 0 if self.loaded_batcher is None else self.loaded_batcher.waiting

    @property
    def failure(self) -> str:
        """Why it is not ready, empty where it is."""
        if self.loaded_batcher is not None and self.loaded_batcher.failure is not None:
            return str(self.loaded_batcher.failure)
        return "" if self.ready else self.reason

    @property
    def idle(self) -> bool:
        """Whether nobody uses it now, nor is about to, having waited for it to be loaded."""
        return self._active == 0 and (self.loaded_by is None or self.loaded_by.waiters == 0)

    def provenance(self) -> dict[str, str]:
        """What its scores rest on. Before it was loaded for the first time, only what the spec says."""
        if self.loaded_model is not None:
            self._provenance = self.loaded_model.provenance()
        known = {"reward": self.spec.name, "variant": self.variant.name, "recipe": self.variant.recipe}
        return {**known, **self._provenance}

    def check_room(self) -> None:
        """Refuse a request early, before its body is read. Raises as `Batcher.check_room`."""
        if self.loaded_batcher is not None and not self.draining:
            self.loaded_batcher.check_room()

    async def score(self, items: Sequence[Item | ItemError], timeout: float) -> list[Outcome]:
        """Score the items, loading the model first where need be; errors stay in their places.

        Raises as `Batcher.submit` and `Pool.using`.
        """
        deadline = Deadline(timeout)
        wanted = [item for item in items if isinstance(item, Item)]
        async with self.pool.using(self, deadline, len(wanted)):
            costs = await self._costs(wanted)
            scored = iter(await self.batcher.submit(wanted, deadline.left, costs))
            self.scored += len(wanted)
            return [next(scored) if isinstance(item, Item) else item for item in items]

    def enter(self) -> None:
        """Begin to use it: it is not evicted before `leave`."""
        self._active += 1

    def leave(self) -> None:
        """End to use it."""
        self._active -= 1
        self.last_used = time.monotonic()
        self.stir()

    def stir(self) -> None:
        """Have `drained` look again."""
        self._left.set()

    async def drained(self) -> None:
        """Wait until it is idle."""
        while not self.idle:
            self._left.clear()
            await self._left.wait()

    async def _costs(self, items: Sequence[Item]) -> list[int] | None:
        if self.spec.max_batch_cost is None:
            return None
        # In a thread, because it reads the head of every file.
        return await asyncio.to_thread(lambda: [_cost(self.model, item) for item in items])


def _cost(model: RewardModel, item: Item) -> int:
    image = item.image.data if isinstance(item.image, Encoded) else item.image
    try:
        width, height = size_of(image)
    except ItemError:
        return 1  # its preparation says what is wrong
    return model.cost(width, height)
