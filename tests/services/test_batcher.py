from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import pytest

from rewardzoo.errors import DeadlineError, ItemError, OverloadedError, UnavailableError
from rewardzoo.services.batcher import Batcher, Item

Outcome = float | ItemError


class Device:
    """Stages without a model: an item's score is the number in its prompt; it keeps what it ran."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.go = threading.Event()
        self.go.set()
        self.prepared: list[list[float]] = []
        self.poison: set[float] = set()
        self.threads: set[int] = set()

    def prepare(self, items: Sequence[Item]) -> list[float]:
        numbers = [float(item.prompt) for item in items]
        self.prepared.append(numbers)
        return numbers

    def run(self, numbers: list[float]) -> list[Outcome]:
        self.threads.add(threading.get_ident())
        self.go.wait(10)
        self.batches.append(numbers)
        if self.poison.intersection(numbers):
            raise RuntimeError("poison")
        return list(numbers)


def items(*numbers: int) -> list[Item]:
    return [Item(b"", str(number)) for number in numbers]


def drive(
    device: Device,
    scenario: Callable[[Batcher[list[float], float]], Coroutine[Any, Any, None]],
    **options: Any,
) -> None:
    """Run `scenario` against a started batcher, and stop it."""

    async def main() -> None:
        batcher = Batcher(device.prepare, device.run, **{"max_batch": 4, **options})
        batcher.start()
        try:
            await asyncio.wait_for(scenario(batcher), 20)
        finally:
            device.go.set()
            await asyncio.wait_for(batcher.stop(), 20)

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def occupy(batcher: Batcher[list[float], float], device: Device) -> asyncio.Task[list[Outcome]]:
    """Hold the device with one item until `device.go` is set."""
    device.go.clear()
    task = asyncio.create_task(batcher.submit(items(0), 20))
    await until(lambda: device.threads)
    return task


def test_a_lone_request_up_to_max_batch_is_one_batch_in_its_order() -> None:
    device = Device()

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        assert await batcher.submit(items(3, 1, 2), 5) == [3, 1, 2]
        assert await batcher.submit(items(4, 3, 2, 1), 5) == [4, 3, 2, 1]

    drive(device, scenario)
    assert device.batches == [[3, 1, 2], [4, 3, 2, 1]]


def test_concurrent_requests_are_merged_and_each_gets_its_own_scores() -> None:
    device = Device()

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        results = await asyncio.gather(*(batcher.submit(items(n), 5) for n in range(32)))
        assert results == [[n] for n in range(32)]

    drive(device, scenario, max_batch=16, window=0.1)
    assert [len(batch) for batch in device.batches] == [16, 16]


def test_a_large_request_is_split_and_comes_back_in_order() -> None:
    device = Device()

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        assert await batcher.submit(items(*range(10)), 5) == list(range(10))

    drive(device, scenario)
    assert device.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_full_batch_does_not_wait_for_the_window() -> None:
    device = Device()

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        await asyncio.wait_for(batcher.submit(items(1, 2, 3, 4), 60), 5)

    drive(device, scenario, window=30)


def test_a_small_request_is_not_kept_waiting_by_large_ones() -> None:
    device = Device()

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        await occupy(batcher, device)
        large = [asyncio.create_task(batcher.submit(items(*[n] * 40), 20)) for n in (1, 2)]
        await until(lambda: len(device.prepared) == 2)
        small = asyncio.create_task(batcher.submit(items(9), 20))
        await asyncio.sleep(0.01)
        device.go.set()
        await asyncio.gather(small, *large)

    drive(device, scenario)
    # [0] held the device and one full batch was ready behind it; the small one is in the next.
    assert 9 in device.batches[2]
    assert {1, 2} <= set(device.batches[2])


def test_the_next_full_batch_is_prepared_while_one_runs() -> None:
    device = Device()

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        held = await occupy(batcher, device)
        other = asyncio.create_task(batcher.submit(items(1, 2, 3, 4), 20))
        await until(lambda: len(device.prepared) == 2)
        assert device.batches == []
        device.go.set()
        await asyncio.gather(held, other)

    drive(device, scenario)


def test_everything_runs_on_one_device_thread() -> None:
    device = Device()

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        await asyncio.gather(*(batcher.submit(items(n, n), 5) for n in range(20)))

    drive(device, scenario)
    assert len(device.threads) == 1


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    device = Device()

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        held = await occupy(batcher, device)
        waiting = asyncio.create_task(batcher.submit(items(1, 2, 3), 20))
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError, match="3 items wait and 3 more would exceed 5") as refusal:
            await batcher.submit(items(4, 5, 6), 20)
        assert refusal.value.retry_after is not None
        assert 1 <= refusal.value.retry_after <= 60
        device.go.set()
        assert await held == [0]
        assert await waiting == [1, 2, 3]

    drive(device, scenario, max_queue=5)


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    async def scenario(batcher: Batcher[list[float], float]) -> None:
        assert await batcher.submit(items(*range(30)), 5) == list(range(30))

    drive(Device(), scenario, max_queue=5)


def test_a_poisoned_item_fails_alone_among_many_requests() -> None:
    device = Device()
    device.poison = {7}

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        results = await asyncio.gather(*(batcher.submit(items(n), 5) for n in range(16)))
        failed = results.pop(7)
        assert results == [[n] for n in range(16) if n != 7]
        assert isinstance(failed[0], ItemError)
        assert "RuntimeError: poison" in str(failed[0])

    drive(device, scenario, max_batch=16, window=0.1)


def test_a_stage_that_loses_items_fails_them_instead_of_shifting_scores() -> None:
    async def main() -> list[Outcome]:
        batcher = Batcher(lambda batch: list(batch), lambda batch: [1.0] * (len(batch) - 1), max_batch=4)
        batcher.start()
        try:
            return await batcher.submit(items(1, 2), 5)
        finally:
            await batcher.stop()

    assert [type(outcome) for outcome in asyncio.run(main())] == [ItemError, ItemError]


def test_a_request_past_its_deadline_is_answered_and_never_reaches_the_device() -> None:
    device = Device()

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        held = await occupy(batcher, device)
        with pytest.raises(DeadlineError, match="0 of 5 items"):
            await batcher.submit(items(1, 1, 1, 1, 1), 0.05)
        device.go.set()
        assert await held == [0]
        assert await batcher.submit(items(2), 5) == [2]

    drive(device, scenario)
    assert device.batches == [[0], [2]]


def test_the_work_of_a_cancelled_caller_is_dropped() -> None:
    device = Device()

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        await occupy(batcher, device)
        leaver = asyncio.create_task(batcher.submit(items(*[1] * 40), 20))
        await until(lambda: len(device.prepared) == 2)
        leaver.cancel()
        with suppress(asyncio.CancelledError):
            await leaver
        device.go.set()
        assert await batcher.submit(items(2), 5) == [2]

    drive(device, scenario)
    assert device.batches == [[0], [2]]


def test_stopping_fails_who_waits_and_finishes_what_runs() -> None:
    device = Device()

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        running = await occupy(batcher, device)
        waiting = asyncio.create_task(batcher.submit(items(1), 20))
        await asyncio.sleep(0.01)
        stopping = asyncio.create_task(batcher.stop())
        with pytest.raises(UnavailableError, match="stopping"):
            await waiting
        device.go.set()
        await stopping
        assert await running == [0]
        with pytest.raises(UnavailableError, match="stopping"):
            await batcher.submit(items(1), 1)

    drive(device, scenario)


def test_a_batcher_that_was_not_started_refuses_at_once() -> None:
    device = Device()
    batcher = Batcher(device.prepare, device.run, max_batch=4)
    with pytest.raises(UnavailableError, match="not started"):
        asyncio.run(batcher.submit(items(1), 1))


def test_a_lost_device_fails_all_requests_without_trying_items_one_by_one() -> None:
    device = Device()

    def lose(_: list[float]) -> list[Outcome]:
        device.batches.append([])
        raise UnavailableError("device lost")

    device.run = lose  # type: ignore[method-assign]

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        for _ in range(2):
            with pytest.raises(UnavailableError, match="device lost"):
                await batcher.submit(items(1, 2, 3, 4, 5, 6), 5)

    drive(device, scenario)
    assert len(device.batches) <= 2


def test_an_empty_request_gets_an_empty_answer() -> None:
    async def scenario(batcher: Batcher[list[float], float]) -> None:
        assert await batcher.submit([], 5) == []

    drive(Device(), scenario)


def test_a_mixed_crowd_is_all_answered_in_time() -> None:
    """Merging, splitting, poison and hang-ups at once: nobody hangs and no score goes astray."""
    device = Device()
    device.poison = {13}

    async def one(batcher: Batcher[list[float], float], n: int) -> None:
        numbers = [n] * (1 + n % 7)
        if n % 5 == 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(batcher.submit(items(*numbers), 20), 0.001)
            return
        outcomes = await batcher.submit(items(*numbers), 20)
        expected = ItemError if n == 13 else float
        assert all(isinstance(o, expected) for o in outcomes)
        assert n == 13 or outcomes == numbers

    async def scenario(batcher: Batcher[list[float], float]) -> None:
        await asyncio.gather(*(one(batcher, n) for n in range(100)))

    started = time.monotonic()
    drive(device, scenario)
    assert time.monotonic() - started < 10
