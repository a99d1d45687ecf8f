"""The rewards of one server, and what they share: the device, threads, limits, memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rewardzoo.errors import ItemError, NotServedError, RequestError, UnavailableError
from rewardzoo.services.capacity import Admission
from rewardzoo.services.config import ServeConfig
from rewardzoo.services.device import Device
from rewardzoo.services.hosted import HostedReward
from rewardzoo.services.observer import Observer, Silent
from rewardzoo.services.pool import Pool, free
from rewardzoo.services.queue import Item
from rewardzoo.services.tracing import scoring
from rewardzoo.services.workers import Encoded, Shelf, Workers

if TYPE_CHECKING:
    import torch

    from rewardzoo.rewards import Outcome, RewardModel, RewardSpec, Variant
    from rewardzoo.services.exchange import Deadline

__all__ = ["Host", "HostedReward", "Load", "Resolve"]

logger = logging.getLogger(__name__)
Load = Callable[..., "RewardModel"]
"""As `rewardzoo.rewards.load`."""
Resolve = Callable[[str], "tuple[type[RewardModel], Variant]"]
"""As `rewardzoo.rewards.resolve`."""
_SHELF = 256 * 2**20
_MAX_TOGETHER = 16


class Host:
    """All rewards of a server, by full name; `models` are loaded already."""

    def __init__(
        self,
        config: ServeConfig,
        models: Sequence[RewardModel] = (),
        *,
        observer: Observer | None = None,
        on_lost: Callable[[UnavailableError], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.observer: Observer = observer or Silent()
        self.device = Device(on_lost)
        self.workers = Workers(config.threads)
        self.shelf = Shelf(_SHELF)
        self.admission = Admission(config.max_queue_mb * 2**20)
        self.pool = Pool(config, self.device, self.workers, self.observer)
        self.rewards: dict[str, HostedReward] = {}
        self._started = False
        for model in models:
            reward = self._add(model.spec, model.variant, partial(_same, model))
            self.pool.put(reward, model)

    @classmethod
    def load(
        cls,
        config: ServeConfig,
        default: Sequence[str],
        load: Load,
        resolve: Resolve,
        *,
        observer: Observer | None = None,
        on_lost: Callable[[UnavailableError], None] = lambda _: None,
    ) -> Host:
        """Make the host of the config's rewards, or of `default` where it has none.

        They are loaded now, in their order, as long as they fit into the memory that the config allows; where
        the config is lazy, the pinned ones only.

        Raises:
            ValueError: neither names a reward, or an option names one that is not among them.
            UnknownRewardError, WeightsError: as `rewardzoo.rewards.load`.
        """
        names = config.rewards or default
        if not names:
            raise ValueError(
                "no rewards to serve: set REWARDZOO_REWARDS, e.g. to hpsv2:mini,imagereward:mini"
            )
        for option, given in (("WEIGHTS", config.weights), ("PINNED", config.pinned)):
            if unused := sorted(set(given) - set(names)):
                raise ValueError(f"REWARDZOO_{option} names {unused}, but the rewards are {list(names)}")
        host = cls(config, observer=observer, on_lost=on_lost)
        for name in names:
            kind, variant = resolve(name)
            weights = config.weights.get(name)
            read = partial(load, name, device=config.device, dtype=_dtype(config.dtype), weights=weights)
            host._add(kind.spec, variant, read, pinned=name in config.pinned)
        host._load_now()
        return host

    def _add(
        self, spec: RewardSpec, variant: Variant, read: Callable[[], RewardModel], *, pinned: bool = False
    ) -> HostedReward:
        name = f"{spec.name}:{variant.name}"
        reward = self.rewards[name] = HostedReward(name, spec, variant, read, self.pool, pinned)
        self.pool.rewards = list(self.rewards.values())
        return reward

    def _load_now(self) -> None:
        began_all = time.monotonic()
        for reward in sorted(self.rewards.values(), key=lambda reward: not reward.pinned):
            if self.config.lazy and not reward.pinned:
                continue
            began = time.monotonic()
            model = reward.read()
            if not self.pool.fits(model):
                if reward.pinned:
                    need = f"{model.nbytes / 2**30:.2f} GiB beside what is loaded"
                    raise ValueError(f"{reward.name} is pinned and needs {need}: raise REWARDZOO_MEMORY_GB")
                logger.warning("%s does not fit beside the others: it is loaded when asked for", reward.name)
                reward.nbytes = model.nbytes
                del model
                free()
                continue
            self.pool.put(reward, model)
            self.observer.loaded(reward.name, time.monotonic() - began)
        # What a caller is told to wait when this process has to be replaced.
        self.device.restart_after = 5 + time.monotonic() - began_all

    @property
    def ready(self) -> bool:
        """Whether requests are taken: those for rewards that are not loaded load them."""
        return self._started and self.device.failure is None

    def find(self, name: str) -> HostedReward:
        """Return the reward called `name`; a bare family means its one released variant here.

        Raises:
            NotServedError: there is none, or several; the message has what is hosted.
        """
        if name in self.rewards:
            return self.rewards[name]
        released = [
            reward
            for reward in self.rewards.values()
            if reward.spec.name == name and not reward.variant.is_mini
        ]
        if len(released) != 1:
            raise NotServedError(
                f"reward {name!r:.100} is not served here, there are: {', '.join(self.rewards)}"
            )
        return released[0]

    def find_all(self, names: str) -> list[HostedReward]:
        """Return the rewards of a name, or of several joined by `+`, in their order.

        Raises:
            NotServedError: as `find`.
            RequestError: too many, or one of them twice.
        """
        parts = names.split("+")
        if len(parts) > _MAX_TOGETHER:
            raise RequestError(f"{len(parts)} rewards in one request, the limit is {_MAX_TOGETHER}")
        rewards = [self.find(part) for part in parts]
        if len(set(rewards)) < len(rewards):
            raise RequestError(f"a reward is named twice in {names!r:.200}: name each once")
        return rewards

    async def score(
        self, rewards: Sequence[HostedReward], items: Sequence[Item | ItemError], deadline: Deadline
    ) -> list[list[Outcome]]:
        """Score the items with each of the rewards: one list a reward. Raises as `HostedReward.score`.

        Where one of the rewards cannot answer, all of it fails.
        """
        tasks = [asyncio.create_task(reward.score(items, deadline.left)) for reward in rewards]
        try:
            with scoring("+".join(reward.name for reward in rewards), len(items)) as done:
                outcomes = await asyncio.gather(*tasks)
                failed = (any(isinstance(o, ItemError) for o in row) for row in zip(*outcomes, strict=True))
                done(len(items) - sum(failed))
                return outcomes
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.shelf.drop(i.image for i in items if isinstance(i, Item) and isinstance(i.image, Encoded))

    async def start(self) -> None:
        """Warm up and start what is loaded; `ready` from here on."""
        self.device.start()
        for reward in self.rewards.values():
            if reward.loaded_model is not None:
                await self.pool.open(reward)
        self._started = True

    async def stop(self) -> None:
        """Stop everything; callers that wait get an `UnavailableError`."""
        self._started = False
        await self.pool.close()
        await self.device.stop()
        self.workers.stop()


def _same(model: RewardModel) -> RewardModel:
    return model


def _dtype(name: str | None) -> torch.dtype | None:
    import torch

    return None if name is None else getattr(torch, name)
