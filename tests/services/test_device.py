from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import torch

from rewardzoo.errors import UnavailableError
from rewardzoo.services.device import Device, OutOfMemoryError, is_fatal, is_out_of_memory


class Clock:
    """Time that passes when work says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def work(self, user: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.order.append(user)
            self.now += seconds

        return run


def drive(device: Device, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        device.start()
        try:
            await asyncio.wait_for(scenario(), 20)
        finally:
            await asyncio.wait_for(device.stop(), 20)

    asyncio.run(main())


async def hold(device: Device) -> tuple[threading.Event, asyncio.Task[None]]:
    """Keep the device busy until the event is set."""
    go, busy = threading.Event(), threading.Event()

    def wait() -> None:
        busy.set()
        go.wait(10)

    task = asyncio.create_task(device.run("holder", wait))
    await asyncio.to_thread(busy.wait, 10)
    return go, task


def test_models_get_equal_time_and_not_equal_turns() -> None:
    clock = Clock()
    device = Device(clock=lambda: clock.now)

    async def scenario() -> None:
        go, held = await hold(device)
        turns = [device.run("slow", clock.work("slow", 10)) for _ in range(4)]
        turns += [device.run("fast", clock.work("fast", 1)) for _ in range(40)]
        waiting = [asyncio.create_task(turn) for turn in turns]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(held, *waiting)

    drive(device, scenario)
    used = {"slow": 0, "fast": 0}
    for user in clock.order[:33]:
        used[user] += 10 if user == "slow" else 1
        assert abs(used["slow"] - used["fast"]) <= 10
    assert used == {"slow": 30, "fast": 30}
    assert clock.order.count("slow") == 4


def test_a_newcomer_and_one_that_was_idle_start_level_with_the_others() -> None:
    clock = Clock()
    device = Device(clock=lambda: clock.now)

    async def scenario() -> None:
        await device.run("idle", clock.work("idle", 1))
        for _ in range(10):
            await device.run("busy", clock.work("busy", 10))
        clock.order.clear()
        go, held = await hold(device)
        waiting = [
            asyncio.create_task(device.run(user, clock.work(user, 10)))
            for user in ["busy"] * 4 + ["idle"] * 4 + ["new"] * 4
        ]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(held, *waiting)

    drive(device, scenario)
    # Without that, all eight turns of the two would come first.
    assert "busy" in clock.order[:5]
    assert clock.order[:9].count("busy") >= 2


def test_everything_runs_on_one_thread_and_results_and_errors_come_back() -> None:
    device = Device()

    async def scenario() -> None:
        threads = await asyncio.gather(*(device.run(f"m{i % 3}", threading.get_ident) for i in range(9)))
        assert len(set(threads)) == 1
        with pytest.raises(ZeroDivisionError):
            await device.run("m", lambda: 1 // 0)
        assert await device.run("m", lambda: 7) == 7

    drive(device, scenario)


def test_cancelled_work_that_has_not_begun_is_not_done() -> None:
    device, done = Device(), threading.Event()

    async def scenario() -> None:
        go, held = await hold(device)
        task = asyncio.create_task(device.run("m", done.set))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        go.set()
        await held

    drive(device, scenario)
    assert not done.is_set()


def test_out_of_memory_is_an_error_of_its_own_without_the_frames_that_hold_the_memory() -> None:
    device = Device()

    def work() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    async def scenario() -> None:
        with pytest.raises(OutOfMemoryError, match="20 GiB") as caught:
            await device.run("m", work)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        assert not any(entry.name == "work" for entry in caught.traceback)
        assert device.failure is None

    drive(device, scenario)


def test_a_lost_device_fails_all_later_work_and_says_so_once() -> None:
    told: list[UnavailableError] = []
    device, done = Device(told.append), threading.Event()

    def lose() -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    async def scenario() -> None:
        with pytest.raises(UnavailableError, match="device-side assert"):
            await device.run("m", lose)
        for _ in range(2):
            with pytest.raises(UnavailableError, match="device-side assert"):
                await device.run("other", done.set)
        await asyncio.sleep(0)

    drive(device, scenario)
    assert not done.is_set()
    assert len(told) == 1
    assert told[0].retry_after


@pytest.mark.parametrize(
    ("error", "memory", "fatal"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True, False),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (torch.AcceleratorError("CUDA error: out of memory"), True, False),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            True,
            False,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True, False),
        (MemoryError(), True, False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("shapes do not match"), False, False),
        (ValueError("out of memory"), False, False),
    ],
)
def test_errors_are_told_apart(error: Exception, memory: bool, fatal: bool) -> None:
    assert is_out_of_memory(error) == memory
    assert is_fatal(error) == fatal
