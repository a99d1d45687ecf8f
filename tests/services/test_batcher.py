from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch

from rewardzoo.errors import DeadlineError, ItemError, OverloadedError, UnavailableError
from rewardzoo.services.batcher import Batcher, Item
from rewardzoo.services.device import Device
from rewardzoo.services.observer import Silent

Outcome = float | ItemError


class Fake:
    """Stages without a model: an item's score is the number in its prompt; it keeps what it ran."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.go = threading.Event()
        self.go.set()
        self.prepared: list[list[float]] = []
        self.collated: list[list[float]] = []
        self.poison: set[float] = set()
        self.threads: set[int] = set()
        self.memory: int | None = None
        """More items at once than this, and there is none left."""

    def prepare(self, items: Sequence[Item]) -> list[float | ItemError]:
        numbers = [float(item.prompt) for item in items]
        self.prepared.append(numbers)
        return [ItemError("below zero") if number < 0 else number for number in numbers]

    def collate(self, parts: Sequence[float]) -> list[float]:
        self.collated.append(list(parts))
        return list(parts)

    def run(self, prepared: list[float]) -> list[Outcome]:
        self.threads.add(threading.get_ident())
        self.go.wait(10)
        if self.memory is not None and len(prepared) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(prepared)
        if self.poison.intersection(prepared):
            raise RuntimeError("poison")
        return list(prepared)


Fed = Batcher[float, list[float], float]


class Notes(Silent):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.ran_items: list[int] = []
        self.waits = 0
        self.queue = 0

    def waited(self, reward: str, seconds: float) -> None:
        assert seconds >= 0
        self.waits += 1

    def ran(self, reward: str, items: int, seconds: float) -> None:
        self.ran_items.append(items)

    def scored(self, reward: str, outcome: str, items: int) -> None:
        self.outcomes[outcome] += items

    def queued(self, reward: str, items: int) -> None:
        self.queue = items


def items(*numbers: int) -> list[Item]:
    return [Item(b"", str(number)) for number in numbers]


def drive(fake: Fake, scenario: Callable[[Fed], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Run `scenario` against a started batcher, and stop it."""

    async def main() -> None:
        device = Device()
        device.start()
        batcher: Fed = Batcher("fake", fake, device, **{"max_batch": 4, **options})
        batcher.start()
        try:
            await asyncio.wait_for(scenario(batcher), 20)
        finally:
            fake.go.set()
            await asyncio.wait_for(batcher.stop(), 20)
            await asyncio.wait_for(device.stop(), 20)

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def occupy(batcher: Fed, fake: Fake) -> asyncio.Task[list[Outcome]]:
    """Hold the device with one item until `fake.go` is set."""
    fake.threads.clear()
    fake.go.clear()
    task = asyncio.create_task(batcher.submit(items(0), 20))
    await until(lambda: fake.threads)
    return task


def test_a_lone_request_up_to_max_batch_is_one_batch_in_its_order() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        assert await batcher.submit(items(3, 1, 2), 5) == [3, 1, 2]
        assert await batcher.submit(items(4, 3, 2, 1), 5) == [4, 3, 2, 1]

    drive(fake, scenario)
    assert fake.batches == [[3, 1, 2], [4, 3, 2, 1]]


def test_concurrent_requests_are_merged_and_each_gets_its_own_scores() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        results = await asyncio.gather(*(batcher.submit(items(n), 5) for n in range(32)))
        assert results == [[n] for n in range(32)]

    drive(fake, scenario, max_batch=16, window=0.1)
    assert [len(batch) for batch in fake.batches] == [16, 16]


def test_a_large_request_is_split_and_comes_back_in_order() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        assert await batcher.submit(items(*range(10)), 5) == list(range(10))

    drive(fake, scenario)
    assert fake.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_full_batch_does_not_wait_for_the_window() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        await asyncio.wait_for(batcher.submit(items(1, 2, 3, 4), 60), 5)

    drive(fake, scenario, window=30)


def test_a_small_request_is_not_kept_waiting_by_large_ones() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        await occupy(batcher, fake)
        large = [asyncio.create_task(batcher.submit(items(*[n] * 40), 20)) for n in (1, 2)]
        await until(lambda: len(fake.prepared) == 2)
        small = asyncio.create_task(batcher.submit(items(9), 20))
        await asyncio.sleep(0.01)
        fake.go.set()
        await asyncio.gather(small, *large)

    drive(fake, scenario)
    # [0] held the device and one full batch was ready behind it; the small one is in the next.
    assert 9 in fake.batches[2]
    assert {1, 2} <= set(fake.batches[2])


def test_the_next_full_batch_is_prepared_while_one_runs() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        held = await occupy(batcher, fake)
        other = asyncio.create_task(batcher.submit(items(1, 2, 3, 4), 20))
        await until(lambda: len(fake.prepared) == 2)
        assert fake.batches == []
        fake.go.set()
        await asyncio.gather(held, other)

    drive(fake, scenario)


def test_everything_runs_on_one_device_thread() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        await asyncio.gather(*(batcher.submit(items(n, n), 5) for n in range(20)))

    drive(fake, scenario)
    assert len(fake.threads) == 1


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        held = await occupy(batcher, fake)
        waiting = asyncio.create_task(batcher.submit(items(1, 2, 3), 20))
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError, match="3 items wait and 3 more would exceed 5") as refusal:
            await batcher.submit(items(4, 5, 6), 20)
        assert refusal.value.retry_after is not None
        assert 1 <= refusal.value.retry_after <= 60
        fake.go.set()
        assert await held == [0]
        assert await waiting == [1, 2, 3]

    drive(fake, scenario, max_queue=5)


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    async def scenario(batcher: Fed) -> None:
        assert await batcher.submit(items(*range(30)), 5) == list(range(30))

    drive(Fake(), scenario, max_queue=5)


def test_a_poisoned_item_fails_alone_among_many_requests() -> None:
    fake = Fake()
    fake.poison = {7}

    async def scenario(batcher: Fed) -> None:
        results = await asyncio.gather(*(batcher.submit(items(n), 5) for n in range(16)))
        failed = results.pop(7)
        assert results == [[n] for n in range(16) if n != 7]
        assert isinstance(failed[0], ItemError)
        assert "RuntimeError: poison" in str(failed[0])

    drive(fake, scenario, max_batch=16, window=0.1)


def test_a_stage_that_loses_items_fails_them_instead_of_shifting_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(batcher: Fed) -> None:
        assert [type(outcome) for outcome in await batcher.submit(items(1, 2), 5)] == [ItemError, ItemError]

    for stage in ("run", "prepare"):
        fake = Fake()
        monkeypatch.setattr(fake, stage, lambda batch: [1.0] * (len(batch) - 1))
        drive(fake, scenario)


def test_a_request_past_its_deadline_is_answered_and_never_reaches_the_device() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        held = await occupy(batcher, fake)
        with pytest.raises(DeadlineError, match="0 of 5 items"):
            await batcher.submit(items(1, 1, 1, 1, 1), 0.05)
        fake.go.set()
        assert await held == [0]
        assert await batcher.submit(items(2), 5) == [2]

    drive(fake, scenario)
    assert fake.batches == [[0], [2]]


def test_the_work_of_a_cancelled_caller_is_dropped() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        await occupy(batcher, fake)
        leaver = asyncio.create_task(batcher.submit(items(*[1] * 40), 20))
        await until(lambda: len(fake.prepared) == 2)
        leaver.cancel()
        with suppress(asyncio.CancelledError):
            await leaver
        fake.go.set()
        assert await batcher.submit(items(2), 5) == [2]

    drive(fake, scenario)
    assert fake.batches == [[0], [2]]


def test_stopping_fails_who_waits_and_finishes_what_runs() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        running = await occupy(batcher, fake)
        waiting = asyncio.create_task(batcher.submit(items(1), 20))
        await asyncio.sleep(0.01)
        stopping = asyncio.create_task(batcher.stop())
        with pytest.raises(UnavailableError, match="stopping"):
            await waiting
        fake.go.set()
        await stopping
        assert await running == [0]
        with pytest.raises(UnavailableError, match="stopping"):
            await batcher.submit(items(1), 1)

    drive(fake, scenario)


def test_a_batcher_that_was_not_started_refuses_at_once() -> None:
    batcher: Fed = Batcher("fake", Fake(), Device(), max_batch=4)
    with pytest.raises(UnavailableError, match="not started"):
        asyncio.run(batcher.submit(items(1), 1))


def test_a_lost_device_fails_all_requests_without_trying_items_one_by_one() -> None:
    fake = Fake()

    def lose(_: list[float]) -> list[Outcome]:
        fake.batches.append([])
        raise torch.AcceleratorError("an illegal memory access was encountered")

    fake.run = lose  # type: ignore[method-assign]

    async def scenario(batcher: Fed) -> None:
        for _ in range(2):
            with pytest.raises(UnavailableError, match="device is lost") as told:
                await batcher.submit(items(1, 2, 3, 4, 5, 6), 5)
            assert told.value.retry_after

    drive(fake, scenario)
    assert len(fake.batches) == 1


def test_an_empty_request_gets_an_empty_answer() -> None:
    async def scenario(batcher: Fed) -> None:
        assert await batcher.submit([], 5) == []

    drive(Fake(), scenario)


def test_a_mixed_crowd_is_all_answered_in_time() -> None:
    """Merging, splitting, poison and hang-ups at once: nobody hangs and no score goes astray."""
    fake = Fake()
    fake.poison = {13}

    async def one(batcher: Fed, n: int) -> None:
        numbers = [n] * (1 + n % 7)
        if n % 5 == 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(batcher.submit(items(*numbers), 20), 0.001)
            return
        outcomes = await batcher.submit(items(*numbers), 20)
        expected = ItemError if n == 13 else float
        assert all(isinstance(o, expected) for o in outcomes)
        assert n == 13 or outcomes == numbers

    async def scenario(batcher: Fed) -> None:
        await asyncio.gather(*(one(batcher, n) for n in range(100)))

    started = time.monotonic()
    drive(fake, scenario)
    assert time.monotonic() - started < 10


def test_an_item_that_cannot_be_prepared_fails_alone_and_reaches_no_device() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        first, second, third = await batcher.submit(items(1, -1, 2), 5)
        assert (first, third) == (1, 2)
        assert isinstance(second, ItemError)

    drive(fake, scenario)
    assert fake.batches == [[1, 2]]


def test_a_batch_holds_no_more_than_its_cost() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        numbers = [1, 2, 3, 4, 5, 6]
        assert await batcher.submit(items(*numbers), 5, [10, 10, 5, 30, 1, 1]) == numbers

    drive(fake, scenario, max_batch=8, max_cost=20)
    assert fake.batches == [[1, 2], [3], [4], [5, 6]]


def test_a_batch_is_full_when_its_cost_is_reached() -> None:
    async def scenario(batcher: Fed) -> None:
        await asyncio.wait_for(batcher.submit(items(1, 2), 60, [10, 10]), 5)

    drive(Fake(), scenario, max_batch=8, max_cost=20, window=30)


def test_costly_requests_take_turns() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        held = await occupy(batcher, fake)
        ones = asyncio.create_task(batcher.submit(items(1, 1, 1), 20, [10] * 3))
        twos = asyncio.create_task(batcher.submit(items(2, 2, 2), 20, [10] * 3))
        await until(lambda: len(fake.prepared) == 2)
        fake.go.set()
        await asyncio.gather(held, ones, twos)

    drive(fake, scenario, max_batch=8, max_cost=10)
    assert [batch[0] for batch in fake.batches] == [0, 1, 2, 1, 2, 1, 2]


def test_items_of_callers_who_left_are_taken_out_of_a_batch_that_is_prepared() -> None:
    fake = Fake()
    notes = Notes()

    async def scenario(batcher: Fed) -> None:
        held = await occupy(batcher, fake)
        stays, leaves = (asyncio.create_task(batcher.submit(items(n, n), 20)) for n in (1, 2))
        expires = asyncio.create_task(batcher.submit(items(3), 0.05))
        await until(lambda: [1, 2, 3, 1] in fake.collated)
        leaves.cancel()
        with pytest.raises(DeadlineError):
            await expires
        fake.go.set()
        assert await stays == [1, 1]
        await held

    drive(fake, scenario, observer=notes)
    assert fake.batches[:2] == [[0], [1, 1]]
    assert not any({2, 3} & set(batch) for batch in fake.batches)
    assert notes.outcomes == {"ok": 3, "dropped": 2, "expired": 1, "item_error": 0}


def test_a_batch_that_does_not_fit_into_memory_is_halved_and_the_safe_size_remembered() -> None:
    fake = Fake()
    fake.memory = 4

    async def scenario(batcher: Fed) -> None:
        assert await batcher.submit(items(*range(16)), 5) == list(range(16))
        assert batcher.limit.cost == 4
        assert await batcher.submit(items(*range(16)), 5) == list(range(16))

    drive(fake, scenario, max_batch=16)
    assert [len(batch) for batch in fake.batches] == [4] * 8
    assert fake.prepared[0] == list(range(16))  # prepared once, whatever the halves
    assert [len(batch) for batch in fake.prepared[1:]] == [4] * 4


def test_an_item_too_large_for_the_memory_fails_alone_and_says_so() -> None:
    fake = Fake()
    fake.memory = 0

    async def scenario(batcher: Fed) -> None:
        outcomes = await batcher.submit(items(1, 2), 5)
        assert all("no memory for this item alone" in str(outcome) for outcome in outcomes)

    drive(fake, scenario)


def test_out_of_memory_while_collating_halves_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    collate = fake.collate

    def tight(parts: Sequence[float]) -> list[float]:
        if len(parts) > 1:
            raise RuntimeError("CUDA error: out of memory")
        return collate(parts)

    monkeypatch.setattr(fake, "collate", tight)

    async def scenario(batcher: Fed) -> None:
        assert await batcher.submit(items(1, 2, 3), 5) == [1, 2, 3]

    drive(fake, scenario)
    assert fake.batches == [[1], [2], [3]]


def test_the_observer_is_told_what_became_of_every_item() -> None:
    fake, notes = Fake(), Notes()

    async def scenario(batcher: Fed) -> None:
        await batcher.submit(items(1, -1, 2), 5)
        held = await occupy(batcher, fake)
        waiting = asyncio.create_task(batcher.submit(items(1, 2, 3), 20))
        await until(lambda: notes.queue == 3)
        with pytest.raises(OverloadedError):
            await batcher.submit(items(4, 5, 6), 20)
        fake.go.set()
        await asyncio.gather(held, waiting)

    drive(fake, scenario, max_queue=5, observer=notes)
    assert notes.outcomes == {"ok": 6, "item_error": 1, "refused": 3}
    assert sum(notes.ran_items) == 6
    assert notes.waits == 7
    assert notes.queue == 0


def test_a_lone_request_is_not_slower_after_a_burst() -> None:
    fake = Fake()

    async def scenario(batcher: Fed) -> None:
        await asyncio.gather(*(batcher.submit(items(n), 20) for n in range(200)))
        assert batcher.waiting == 0
        before = len(fake.batches)
        assert await batcher.submit(items(7), 5) == [7]
        assert fake.batches[before:] == [[7]]  # its own batch, at once: nothing of the burst is left

    drive(fake, scenario)
