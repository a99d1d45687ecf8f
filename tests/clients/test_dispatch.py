from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rewardzoo.clients import AsyncRewardClient, dispatch
from rewardzoo.clients.calls import Call
from rewardzoo.clients.scorer import Scorer
from rewardzoo.clients.transport import Part, Reply, Transport
from rewardzoo.errors import DeadlineError, RequestError, UnavailableError


class Gate(Transport):
    """Scores the first pixel once `go` is set; notes the size of each part."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.sizes: list[int] = []
        self.deadlines: list[float] = []
        self.threads: set[str] = set()

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        self.sizes.append(len(part))
        self.deadlines.append(deadline)
        self.threads.add(threading.current_thread().name)
        self.go.wait(10)
        if "break" in part.prompts:
            raise RequestError("a prompt broke it")
        return Reply([float(p.flat[0]) for p in part.payloads if not isinstance(p, bytes)])

    def close(self) -> None: ...


def image(value: int, side: int = 2) -> np.ndarray[Any, Any]:
    return np.full((side, side, 3), value, dtype=np.uint8)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def test_calls_of_one_item_that_wait_share_requests() -> None:
    gate = Gate()
    with Scorer(gate, timeout=10, max_in_flight=2) as scorer:
        futures = [scorer.submit([image(i)], "a", reward="r") for i in range(200)]
        wait_for(lambda: len(gate.sizes) == 2)
        gate.go.set()
        assert [float(f.result(5)[0]) for f in futures] == list(range(200))
    assert sum(gate.sizes) == 200
    assert len(gate.sizes) <= 7


def test_a_thousand_open_calls_need_no_more_threads_than_requests_in_flight() -> None:
    gate = Gate()
    before = threading.active_count()
    with Scorer(gate, timeout=10, max_in_flight=3) as scorer:
        futures = [scorer.submit([image(1)], "a", reward="r") for _ in range(1000)]
        assert threading.active_count() - before <= 3
        gate.go.set()
        assert all(f.result(5)[0] == 1 for f in futures)


def test_a_single_call_does_not_wait_for_company() -> None:
    gate = Gate()
    gate.go.set()
    with Scorer(gate, timeout=10, max_in_flight=2) as scorer:
        scorer.score([image(1)], "a", reward="r")
        start = time.monotonic()
        for _ in range(20):
            scorer.score([image(1)], "a", reward="r")
        assert time.monotonic() - start < 20 * dispatch.LINGER


def crowd(count: int) -> list[Call]:
    end = time.monotonic() + 60
    return [Call(("r",), [image(i)], ["a"], None, end, lambda parts: parts) for i in range(count)]


@pytest.mark.parametrize(("in_flight", "sizes"), [(1, [40]), (2, [20, 20])])
def test_half_of_a_crowd_is_sent_while_the_other_half_is_still_to_come(in_flight, sizes) -> None:
    lane = dispatch._Lane(("r",), in_flight)
    for call in crowd(40):
        lane.add(call)
    for size in sizes:
        assert lane.due() == 0
        lane.take()
        assert len(lane.fill()) == size
        lane.flying += size
    assert not lane.waiting
    for call in crowd(40 // in_flight - 1):  # the first half is back, and lacks one
        lane.flying -= 1
        lane.add(call)
    assert lane.due() > time.monotonic()
    lane.flying -= 1
    lane.add(*crowd(1))
    assert lane.due() == 0


def test_a_call_that_waits_for_company_is_sent_though_its_thread_has_another_rewards_call() -> None:
    class Split(Gate):
        def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
            return super().infer(model, part, deadline=deadline) if model == "slow" else Reply([1.0])

    gate = Split()
    with Scorer(gate, timeout=10, max_in_flight=2) as scorer:
        scorer.score([image(1)], "a", reward="quick")
        scorer._dispatcher()._lanes["quick",].crowd = 64
        quick = scorer.submit([image(1)], "a", reward="quick")
        slow = scorer.submit([image(1)], "a", reward="slow")
        assert quick.result(5)[0] == 1
        assert not slow.done()
        gate.go.set()
        slow.result(5)


def test_calls_for_different_rewards_are_not_mixed_and_take_turns() -> None:
    gate = Gate()
    with Scorer(gate, timeout=10, max_in_flight=1) as scorer:
        long = scorer.submit([image(1)] * 64 * 5, "a", reward="long")
        short = scorer.submit([image(2)], "a", reward="short")
        gate.go.set()
        assert short.result(5)[0] == 2
        long.result(5)
    assert gate.sizes.index(1) <= 2


def test_a_long_call_does_not_hold_up_a_short_one_for_the_same_reward() -> None:
    gate = Gate()
    with Scorer(gate, timeout=10, max_in_flight=1) as scorer:
        long = scorer.submit([image(1)] * 64 * 20, "a", reward="r")
        short = scorer.submit([image(2)], "a", reward="r")
        sent: list[int] = []
        short.add_done_callback(lambda _: sent.append(len(gate.sizes)))
        gate.go.set()
        short.result(5)
        assert_array_equal(long.result(5), np.ones(64 * 20))
    assert sent[0] <= 3
    assert len(gate.sizes) >= 20


def test_a_call_whose_request_is_refused_fails_alone() -> None:
    gate = Gate()
    with Scorer(gate, timeout=10, max_in_flight=1) as scorer:
        first = scorer.submit([image(0)], "a", reward="r")
        wait_for(lambda: gate.sizes)
        good = [scorer.submit([image(i)], "a", reward="r") for i in range(5)]
        bad = scorer.submit([image(9)], "break", reward="r")
        gate.go.set()
        assert [f.result(5)[0] for f in [first, *good]] == [0, 0, 1, 2, 3, 4]
        with pytest.raises(RequestError, match="broke it"):
            bad.result(5)


def test_a_call_out_of_time_does_not_take_those_with_it_that_have_some() -> None:
    class Late(Gate):
        def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
            if not self.go.is_set():
                return super().infer(model, part, deadline=deadline)
            self.sizes.append(len(part))
            if deadline < time.monotonic() + 3:
                raise DeadlineError("too late")
            return Reply([5.0] * len(part))

    gate = Late()
    scorer = Scorer(gate, timeout=30, max_in_flight=1)
    hasty = Scorer(gate, timeout=2, max_in_flight=1)
    hasty._dispatcher = scorer._dispatcher  # two patiences over the same threads
    with scorer:
        first = scorer.submit([image(0)], "a", reward="r")
        wait_for(lambda: gate.sizes)
        short, long = (s.submit([image(1)], "a", reward="r") for s in (hasty, scorer))
        gate.go.set()
        assert first.result(5)[0] == 0
        assert long.result(5)[0] == 5
        with pytest.raises(DeadlineError, match="too late"):
            short.result(5)
    assert gate.sizes == [1, 2, 1]


def test_what_was_not_sent_in_time_says_how_much_that_was() -> None:
    gate = Gate()
    with Scorer(gate, timeout=0.2, max_in_flight=1) as scorer:
        futures = [scorer.submit([image(1)] * 64, "a", reward=r) for r in "xy"]
        time.sleep(0.3)
        gate.go.set()
        with pytest.raises(DeadlineError, match="64 of 64 items were not even sent"):
            futures[1].result(5)


def test_a_caller_does_not_wait_much_longer_than_its_timeout_whatever_the_transport_does() -> None:
    gate = Gate()
    with Scorer(gate, timeout=0.1, max_in_flight=1) as scorer:
        start = time.monotonic()
        with pytest.raises(DeadlineError, match=r"no answer within 0.1 s"):
            scorer.score([image(1)], "a", reward="r")
        assert time.monotonic() - start < 2
        gate.go.set()


def test_a_cancelled_future_sends_nothing_more() -> None:
    gate = Gate()
    with Scorer(gate, timeout=10, max_in_flight=1) as scorer:
        future = scorer.submit([image(1)] * 640, "a", reward="r")
        wait_for(lambda: gate.sizes)
        assert future.cancel()
        gate.go.set()
        scorer.score([image(2)], "a", reward="r")
        with pytest.raises(CancelledError):
            future.result(5)
    assert gate.sizes == [64, 1]


def test_closing_fails_what_is_not_sent_and_refuses_more() -> None:
    gate = Gate()
    scorer = Scorer(gate, timeout=10, max_in_flight=1)
    future = scorer.submit([image(1)] * 640, "a", reward="r")
    wait_for(lambda: gate.sizes)
    scorer.close()
    gate.go.set()
    with pytest.raises(ValueError, match="closed during the call"):
        future.result(5)
    with pytest.raises(ValueError, match="closed"):
        scorer.submit([image(1)], "a", reward="r")


def test_what_is_wrong_with_one_calls_arguments_ends_that_call_only() -> None:
    gate = Gate()
    gate.go.set()
    with Scorer(gate, timeout=10, max_in_flight=1) as scorer:
        with pytest.raises(TypeError, match="not JSON serializable"):
            scorer.score([image(1)], "a", reward="r", metadata=[{"x": object()}])
        assert scorer.score([image(3)], "a", reward="r")[0] == 3


def test_threads_end_when_idle_and_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_IDLE", 0.02)
    gate = Gate()
    gate.go.set()
    with Scorer(gate, timeout=10, max_in_flight=2) as scorer:
        before = threading.active_count()
        for _ in range(3):
            assert scorer.score([image(3)], "a", reward="r")[0] == 3
            wait_for(lambda: threading.active_count() == before)


def test_a_reply_of_another_length_is_an_error_and_not_a_hang() -> None:
    class Short(Gate):
        def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
            return Reply([1.0] * (len(part) - 1))

    scorer = Scorer(Short(), timeout=10, max_in_flight=1)
    with scorer, pytest.raises(RequestError, match="other numbers of scores than 3 items of 1 rewards"):
        scorer.score([image(1)] * 3, "a", reward="r")


def test_an_error_that_is_nobodys_fault_reaches_every_caller_it_concerns() -> None:
    class Broken(Gate):
        def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
            raise RuntimeError("a bug")

    with Scorer(Broken(), timeout=10, max_in_flight=2) as scorer:
        futures = [scorer.submit([image(1)], "a", reward="r") for _ in range(9)]
        for future in futures:
            with pytest.raises(RuntimeError, match="a bug"):
                future.result(5)


def test_tasks_share_requests_and_a_cancelled_one_leaves_the_others_be(server: Any) -> None:
    server.delay = 0.02

    async def run() -> list[float]:
        async with AsyncRewardClient(server.url, reward="sum") as client:
            assert await client.ready()
            tasks = [asyncio.create_task(client.score([image(i % 200)], "a")) for i in range(300)]
            await asyncio.sleep(0)
            tasks[250].cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(done[250], asyncio.CancelledError)
            result = await client.score_result([image(7)], "a")
            assert result.provenance == {"recipe": "sum"}
            return [float(s[0]) for i, s in enumerate(done) if i != 250]

    found = asyncio.run(run())
    assert found == [12.0 * (i % 200) for i in range(300) if i != 250]
    assert len(server.seen) < 30


def test_an_event_loop_is_woken_once_for_calls_that_are_done_together(server: Any) -> None:
    woken: list[Any] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *a: (woken.append(a), wake(*a))[1]  # type: ignore[method-assign]
        async with AsyncRewardClient(server.url, reward="sum") as client:
            await asyncio.gather(*(client.score([image(1)], "a") for _ in range(200)))

    server.delay = 0.02
    asyncio.run(run())
    assert len(woken) < 100


def test_an_awaited_call_ends_at_its_deadline(server: Any) -> None:
    server.delay = 5

    async def run() -> None:
        async with AsyncRewardClient(server.url, timeout=0.2) as client:
            await client.score([image(1)], "a", reward="sum")

    start = time.monotonic()
    with pytest.raises(UnavailableError):
        asyncio.run(run())
    assert time.monotonic() - start < 2


SLOWLY_FREED = """
import sys, time
from PIL import Image
from rewardzoo import RewardClient

class Slow(Image.Image):
    def __del__(self):
        time.sleep(0.3)
        print("freed", flush=True)

image = Image.new("RGB", (2, 2))
image.__class__ = Slow
client = RewardClient(sys.argv[1], reward="sum")
future = client.submit([image], ["a"])
del image
future.result()
"""


def test_the_process_ends_only_when_its_threads_have_let_go_of_the_images(server: Any) -> None:
    # A tensor that is freed while the interpreter ends its thread aborts the process.
    done = subprocess.run(
        [sys.executable, "-c", SLOWLY_FREED, server.url], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "freed\n"), done.stderr
