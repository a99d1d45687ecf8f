"""Which models are in memory: loading, warming up, making room, giving up."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from rewardzoo.errors import DeadlineError, NotServedError, UnavailableError
from rewardzoo.services.batcher import Batcher
from rewardzoo.services.device import Device, empty_cache, is_out_of_memory
from rewardzoo.services.hosted import HostedReward, Loading, Scoring
from rewardzoo.services.observer import Observer

if TYPE_CHECKING:
    from rewardzoo.rewards import RewardModel
    from rewardzoo.services.config import ServeConfig
    from rewardzoo.services.exchange import Deadline
    from rewardzoo.services.workers import Workers

logger = logging.getLogger(__name__)
_RETRY_AFTER = 10.0


class Pool:
    """The models of a server within `config.memory_gb`, one loaded at a time.

    Where there is no room, the model that was used least recently is evicted, idle ones first and pinned ones
    never. It finishes what it was asked; who asks for it meanwhile waits until it is loaded again.
    """

    def __init__(self, config: ServeConfig, device: Device, workers: Workers, observer: Observer) -> None:
        self.config, self.device, self.workers, self.observer = config, device, workers, observer
        self.budget = None if config.memory_gb is None else int(config.memory_gb * 2**30)
        self.rewards: Sequence[HostedReward] = []
        self._one_at_a_time = asyncio.Lock()
        self._loading: dict[str, Loading] = {}
        self._closed = False

    @property
    def used(self) -> int:
        """Bytes of the weights that are loaded."""
        return sum(reward.nbytes for reward in self.rewards if reward.loaded_model is not None)

    def fits(self, model: RewardModel) -> bool:
        """Whether there is room for a model beside those that are loaded."""
        return self.budget is None or self.used + model.nbytes <= self.budget

    @asynccontextmanager
    async def using(self, reward: HostedReward, deadline: Deadline, items: int) -> AsyncIterator[None]:
        """Have a reward loaded for so many items, and keep it from being evicted meanwhile.

        Raises:
            NotServedError: it was unloaded by request.
            DeadlineError: it was not loaded in time.
            UnavailableError: it cannot be loaded, or the device is lost.
        """
        if not reward.ready:
            try:
                await self._wait_loaded(reward, deadline)
            except DeadlineError:
                self.observer.scored(reward.name, "expired", items)
                raise
            except asyncio.CancelledError:
                self.observer.scored(reward.name, "dropped", items)
                raise
        reward.enter()  # without an await before it: nobody can evict it in between
        try:
            yield
        finally:
            reward.leave()

    async def _wait_loaded(self, reward: HostedReward, deadline: Deadline) -> None:
        self._check_open()
        if not reward.wanted:
            raise NotServedError(
                f"{reward.name} was unloaded: POST /v2/repository/models/{reward.name}/load undoes it"
            )
        loading = self._begin(reward)
        loading.waiters += 1
        try:
            async with asyncio.timeout(deadline.left):
                await asyncio.shield(loading.task)  # others may wait for it too
        except TimeoutError:
            raise DeadlineError(f"{reward.name} was not loaded yet when the time was up") from None
        finally:
            loading.waiters -= 1
            reward.stir()

    async def load(self, reward: HostedReward) -> None:
        """Load a reward by request.

        Raises:
            UnavailableError: it cannot be loaded.
        """
        reward.wanted = True
        self._check_open()
        if not reward.ready:
            await asyncio.shield(self._begin(reward).task)

    async def unload(self, reward: HostedReward) -> None:
        """Give a reward up by request, once it has finished what it was asked."""
        reward.wanted = False
        async with self._one_at_a_time:
            if reward.loaded_model is not None and not reward.wanted:
                await self._evict(reward)
            if not reward.wanted:
                reward.state, reward.reason = "UNAVAILABLE", "unloaded"

    def put(self, reward: HostedReward, model: RewardModel) -> None:
        """Take a model into the pool; `open` makes it answer."""
        reward.loaded_model, reward.nbytes = model, model.nbytes
        reward.spec, reward.variant = model.spec, model.variant
        reward.provenance()

    async def open(self, reward: HostedReward) -> None:
        """Warm a model up and start its batcher."""
        model = reward.model
        if self._warms_up(model):
            try:
                await self.device.run(reward.name, model.warm_up)
            except UnavailableError:
                raise
            except Exception as error:
                logger.warning("%s did not warm up: %s", reward.name, error)
        reward.loaded_batcher = Batcher(
            reward.name,
            Scoring(model, self.workers),
            self.device,
            max_batch=model.spec.max_batch,
            max_cost=model.spec.max_batch_cost,
            window=self.config.window_ms / 1e3,
            max_queue=self.config.max_queue,
            observer=self.observer,
        )
        reward.loaded_batcher.start()
        reward.last_used = time.monotonic()
        reward.state, reward.reason = "READY", ""

    async def close(self) -> None:
        """Stop everything; callers that wait get an `UnavailableError`."""
        self._closed = True
        await asyncio.gather(*(loading.task for loading in self._loading.values()), return_exceptions=True)
        for reward in self.rewards:
            if reward.loaded_batcher is not None:
                await reward.loaded_batcher.stop()

    def _check_open(self) -> None:
        if self.device.failure is not None:
            raise self.device.failure
        if self._closed:
            raise UnavailableError("the server is stopping")

    def _warms_up(self, model: RewardModel) -> bool:
        wanted = self.config.warm_up
        return model.device.type == "cuda" if wanted is None else wanted

    def _begin(self, reward: HostedReward) -> Loading:
        loading = self._loading.get(reward.name)
        if loading is None:
            task = asyncio.create_task(self._load(reward))
            loading = self._loading[reward.name] = Loading(task)
            task.add_done_callback(partial(self._loaded, reward.name))
        return loading

    def _loaded(self, name: str, task: asyncio.Task[None]) -> None:
        del self._loading[name]
        if not task.cancelled():
            task.exception()  # told already: without this, asyncio complains where nobody waits any more

    async def _load(self, reward: HostedReward) -> None:
        async with self._one_at_a_time:
            began = time.monotonic()
            if not reward.wanted:  # since this was begun
                raise UnavailableError(f"{reward.name} was unloaded")
            if not reward.ready:
                reward.state, reward.reason = "LOADING", "it is being loaded"
                try:
                    await self._fill(reward)
                except Exception as error:
                    logger.warning("cannot load %s", reward.name, exc_info=error)
                    reward.loaded_model = None
                    reward.state, reward.reason = "UNAVAILABLE", f"cannot be loaded: {error}"
                    raise UnavailableError(f"{reward.name} {reward.reason}", _RETRY_AFTER) from error
                self.observer.loaded(reward.name, time.monotonic() - began)
            # Who waited gets a turn before it can be evicted again.
            reward.loaded_by = self._loading[reward.name]

    async def _fill(self, reward: HostedReward) -> None:
        await self._make_room(reward, reward.nbytes)
        model = await self._read(reward)
        self._check_open()
        try:
            await self._make_room(reward, model.nbytes)
        except UnavailableError:
            del model
            await asyncio.to_thread(free)
            raise
        self.put(reward, model)
        await self.open(reward)

    async def _read(self, reward: HostedReward) -> RewardModel:
        while True:
            try:
                return await asyncio.to_thread(reward.read)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                victim = self._victim(reward)
                if victim is None:
                    raise
            # Out of the handler, whose traceback holds what was loaded so far.
            await self._evict(victim)

    async def _make_room(self, reward: HostedReward, need: int) -> None:
        if self.budget is None:
            return
        while self.used + need > self.budget:
            victim = self._victim(reward)
            if victim is None:
                raise UnavailableError(
                    f"it needs {need / 2**30:.2f} GiB and {max(0, self.budget - self.used) / 2**30:.2f} of "
                    f"{self.budget / 2**30:.2f} are free: raise REWARDZOO_MEMORY_GB, or pin fewer rewards"
                )
            await self._evict(victim)

    def _victim(self, reward: HostedReward) -> HostedReward | None:
        loaded = [r for r in self.rewards if r.loaded_model is not None and r is not reward and not r.pinned]
        return min(loaded, key=lambda r: (not r.idle, r.last_used), default=None)

    async def _evict(self, reward: HostedReward) -> None:
        reward.draining = True
        try:
            await reward.drained()
            if reward.loaded_batcher is not None:
                await reward.loaded_batcher.stop()
            reward.loaded_batcher = reward.loaded_model = None
            reward.state = "UNAVAILABLE"
            reward.reason = "evicted to make room: the next request loads it"
        finally:
            reward.draining = False
        await asyncio.to_thread(free)
        logger.info("%s is evicted", reward.name)
        self.observer.evicted(reward.name)


def free() -> None:
    """Give the memory of models that nobody holds back to the device; it takes a while."""
    gc.collect()
    empty_cache()
