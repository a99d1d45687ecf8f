"""Models that are loaded when they are asked for, and given up when others need the room."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import SecretStr

from rewardzoo.errors import DeadlineError, NotServedError, UnavailableError
from rewardzoo.rewards import RewardModel, Score
from rewardzoo.services import ServeConfig
from rewardzoo.services.batcher import Item
from rewardzoo.services.host import Host
from rewardzoo.services.observer import Silent

ALL = ["fake:v1", "fake:v2", "fake:mini"]
ONE = 8 / 2**30
"""GiB of the fake model's two weights."""


class Shop(Silent):
    """Loads fakes, and remembers what happened."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self.make = make
        self.models: dict[str, Any] = {}
        self.events: list[tuple[str, str]] = []
        self.go = threading.Event()
        self.go.set()
        self.problems: list[Exception] = []
        self.outcomes: list[tuple[str, int]] = []

    def load(self, name: str, **_: Any) -> Any:
        self.go.wait(10)
        if self.problems:
            raise self.problems.pop()
        self.models[name] = self.make(name)
        return self.models[name]

    def loaded(self, reward: str, seconds: float) -> None:
        self.events.append(("loaded", reward))

    def scored(self, reward: str, outcome: str, items: int) -> None:
        self.outcomes.append((outcome, items))

    def evicted(self, reward: str) -> None:
        self.events.append(("evicted", reward))


@pytest.fixture
def shop(make_model: Callable[[str], RewardModel]) -> Shop:
    return Shop(make_model)


def drive(shop: Shop, scenario: Callable[[Host], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def main() -> None:
        config = ServeConfig(**{"rewards": ALL, "device": "cpu", "lazy": True, **settings})
        host = Host.load(config, [], shop.load, lambda n: (type(m := shop.make(n)), m.variant), observer=shop)
        await host.start()
        try:
            await asyncio.wait_for(scenario(host), 20)
        finally:
            shop.go.set()
            for model in shop.models.values():
                model.go.set()
            await asyncio.wait_for(host.stop(), 20)

    asyncio.run(main())


async def score(host: Host, name: str, timeout: float = 10) -> float:
    white = Item(np.full((4, 4, 3), 255, dtype=np.uint8), "a")
    (outcome,) = await host.find(name).score([white], timeout)
    assert isinstance(outcome, Score)
    return outcome.value


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def states(host: Host) -> list[str]:
    return [reward.shown_state for reward in host.rewards.values()]


def test_a_lazy_server_is_ready_at_once_and_loads_at_the_first_request(shop: Shop) -> None:
    async def scenario(host: Host) -> None:
        assert host.ready
        assert states(host) == ["UNAVAILABLE"] * 3
        assert "first request" in host.find("fake:v1").failure
        assert await score(host, "fake:v1") == 1
        assert states(host) == ["READY", "UNAVAILABLE", "UNAVAILABLE"]
        assert host.find("fake:v1").failure == ""

    drive(shop, scenario)
    assert shop.events == [("loaded", "fake:v1")]


def test_requests_that_meet_a_loading_model_wait_for_it_and_load_it_once(shop: Shop) -> None:
    async def scenario(host: Host) -> None:
        shop.go.clear()
        waiting = [asyncio.create_task(score(host, "fake:v1")) for _ in range(5)]
        await until(lambda: states(host)[0] == "LOADING")
        assert host.find("fake:v1").failure == "it is being loaded"
        shop.go.set()
        assert await asyncio.gather(*waiting) == [1] * 5

    drive(shop, scenario)
    assert shop.events == [("loaded", "fake:v1")]


def test_a_request_waits_for_a_loading_model_within_its_deadline_and_the_load_goes_on(shop: Shop) -> None:
    async def scenario(host: Host) -> None:
        shop.go.clear()
        with pytest.raises(DeadlineError, match="not loaded yet"):
            await score(host, "fake:v1", timeout=0.05)
        assert shop.outcomes == [("expired", 1)]
        shop.go.set()
        await until(lambda: host.find("fake:v1").ready)

    drive(shop, scenario)


def test_the_model_used_least_recently_makes_room_and_a_pinned_one_never(shop: Shop) -> None:
    async def scenario(host: Host) -> None:
        assert states(host)[0] == "READY"  # pinned: loaded at start
        await score(host, "fake:v2")
        await score(host, "fake:v1")
        await score(host, "fake:mini")
        assert states(host) == ["READY", "UNAVAILABLE", "READY"]
        assert "evicted" in host.find("fake:v2").failure
        assert host.pool.used == 16
        assert await score(host, "fake:v2") == 1
        assert states(host) == ["READY", "READY", "UNAVAILABLE"]

    drive(shop, scenario, memory_gb=2 * ONE, pinned=["fake:v1"])
    assert ("evicted", "fake:v1") not in shop.events
    assert shop.events.count(("loaded", "fake:v2")) == 2


def test_a_model_that_is_evicted_finishes_its_work_and_who_comes_meanwhile_waits(shop: Shop) -> None:
    async def scenario(host: Host) -> None:
        await score(host, "fake:v1")
        model = shop.models["fake:v1"]
        model.go.clear()
        working = asyncio.create_task(score(host, "fake:v1"))
        await until(lambda: not host.find("fake:v1").idle)
        other = asyncio.create_task(score(host, "fake:v2"))
        await until(lambda: host.find("fake:v1").draining)
        late = asyncio.create_task(score(host, "fake:v1"))
        await asyncio.sleep(0.01)
        assert not working.done()
        assert ("evicted", "fake:v1") not in shop.events
        model.go.set()
        assert await asyncio.gather(working, other, late) == [1, 1, 1]

    drive(shop, scenario, memory_gb=ONE)
    assert shop.events == [
        ("loaded", "fake:v1"),
        ("evicted", "fake:v1"),
        ("loaded", "fake:v2"),
        ("evicted", "fake:v2"),
        ("loaded", "fake:v1"),
    ]


def test_what_does_not_fit_at_all_is_refused_with_the_numbers(shop: Shop) -> None:
    async def scenario(host: Host) -> None:
        with pytest.raises(UnavailableError, match="REWARDZOO_MEMORY_GB") as refusal:
            await score(host, "fake:v1")
        assert refusal.value.retry_after
        assert states(host)[0] == "UNAVAILABLE"
        assert "GiB" in host.find("fake:v1").failure
        assert host.pool.used == 0

    drive(shop, scenario, memory_gb=ONE / 2)


def test_a_load_that_fails_is_told_to_who_waits_and_tried_again_for_the_next(shop: Shop) -> None:
    async def scenario(host: Host) -> None:
        shop.problems = [OSError("the disk is gone")]
        with pytest.raises(UnavailableError, match="the disk is gone"):
            await score(host, "fake:v1")
        assert "the disk is gone" in host.find("fake:v1").failure
        assert await score(host, "fake:v1") == 1

    drive(shop, scenario)


def test_a_load_without_memory_left_evicts_another_model_and_is_tried_again(shop: Shop) -> None:
    async def scenario(host: Host) -> None:
        await score(host, "fake:v1")
        shop.problems = [torch.OutOfMemoryError("CUDA out of memory")]
        assert await score(host, "fake:v2") == 1
        shop.problems = [torch.OutOfMemoryError("CUDA out of memory")] * 2
        with pytest.raises(UnavailableError, match="out of memory"):
            await score(host, "fake:mini")  # the first evicts v2, then nothing is left to evict

    drive(shop, scenario)
    assert shop.events == [
        ("loaded", "fake:v1"),
        ("evicted", "fake:v1"),
        ("loaded", "fake:v2"),
        ("evicted", "fake:v2"),
    ]


def test_an_unloaded_model_is_refused_until_it_is_loaded_by_request(shop: Shop) -> None:
    async def scenario(host: Host) -> None:
        await score(host, "fake:v1")
        model = shop.models["fake:v1"]
        model.go.clear()
        working = asyncio.create_task(score(host, "fake:v1"))
        await until(lambda: not host.find("fake:v1").idle)
        unloading = asyncio.create_task(host.pool.unload(host.find("fake:v1")))
        await until(lambda: host.find("fake:v1").draining)
        model.go.set()
        assert await working == 1
        await unloading
        assert host.find("fake:v1").failure == "unloaded"
        with pytest.raises(NotServedError, match="/load"):
            await score(host, "fake:v1")
        await host.pool.load(host.find("fake:v1"))
        assert await score(host, "fake:v1") == 1

    drive(shop, scenario)


def test_all_are_loaded_at_start_as_long_as_they_fit(shop: Shop) -> None:
    async def scenario(host: Host) -> None:
        assert states(host) == ["READY", "READY", "UNAVAILABLE"]
        assert await score(host, "fake:mini") == 1

    drive(shop, scenario, lazy=False, memory_gb=2 * ONE)


def test_a_model_is_warmed_up_before_it_is_ready_where_that_is_asked(shop: Shop) -> None:
    async def scenario(host: Host) -> None:
        assert shop.models["fake:v1"].sizes == [1]
        await host.pool.load(host.find("fake:v2"))
        assert shop.models["fake:v2"].sizes == [1]

    drive(shop, scenario, warm_up=True, pinned=["fake:v1"])


def test_a_model_that_fails_to_warm_up_serves_all_the_same(shop: Shop) -> None:
    async def scenario(host: Host) -> None:
        def make(name: str) -> Any:
            model = shop.models[name] = type(fake)(fake.variant)
            model.broken = RuntimeError("no such kernel")
            return model

        fake = shop.make("fake:v1")
        shop.make = make
        await host.pool.load(host.find("fake:v1"))
        shop.models["fake:v1"].broken = None
        assert await score(host, "fake:v1") == 1

    drive(shop, scenario, warm_up=True)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"pinned": ["fake:v9"]}, r"REWARDZOO_PINNED names \['fake:v9'\]"),
        ({"pinned": ["fake:v1"], "memory_gb": ONE / 2}, "is pinned and needs"),
    ],
)
def test_pins_that_cannot_be_are_refused_at_start(shop: Shop, settings: Any, error: str) -> None:
    async def scenario(host: Host) -> None:
        pytest.fail("it started")

    with pytest.raises(ValueError, match=error):
        drive(shop, scenario, **settings)


def test_who_waits_for_a_model_is_told_when_the_server_stops(shop: Shop) -> None:
    caught: list[BaseException] = []

    async def scenario(host: Host) -> None:
        shop.go.clear()
        waiting = asyncio.create_task(score(host, "fake:v1"))
        await until(lambda: states(host)[0] == "LOADING")
        stopping = asyncio.create_task(host.stop())
        await asyncio.sleep(0)
        shop.go.set()
        caught.extend(await asyncio.gather(waiting, return_exceptions=True))
        await stopping

    drive(shop, scenario)
    assert isinstance(caught[0], UnavailableError)


def test_a_config_with_the_new_settings_reaches_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServeConfig(
        rewards=ALL, pinned=ALL[:2], lazy=True, memory_gb=1.5, warm_up=False, threads=3, token=SecretStr("x")
    )
    for name, value in config.environment().items():
        monkeypatch.setenv(name, value)
    assert ServeConfig() == config
