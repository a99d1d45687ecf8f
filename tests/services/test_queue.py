from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from rewardzoo.services.queue import FairQueue, Item, Request


def in_a_loop(check: Callable[[], None]) -> None:
    async def main() -> None:
        check()

    asyncio.run(main())


def request(name: str, costs: Sequence[int]) -> Request[float]:
    future = asyncio.get_running_loop().create_future()
    return Request([Item(b"", name)] * len(costs), costs, future)


def filled(*requests: Request[float]) -> FairQueue[float]:
    queue: FairQueue[float] = FairQueue()
    for one in requests:
        queue.add(one)
    return queue


def taken(queue: FairQueue[float], items: int, cost: int) -> str:
    return "".join(entry.item.prompt for entry in queue.take(items, cost))


def test_requests_share_a_batch_evenly_and_what_is_left_over_is_filled() -> None:
    def check() -> None:
        queue = filled(request("a", [1] * 9), request("b", [1] * 9), request("c", [1]))
        assert taken(queue, 7, 99) == "aabbcab"
        assert (queue.items, queue.cost) == (12, 12)
        assert sorted(taken(queue, 99, 99)) == list("aaaaaabbbbbb")
        assert (queue.items, queue.cost) == (0, 0)
        assert taken(queue, 99, 99) == ""

    in_a_loop(check)


def test_a_batch_ends_where_the_next_item_is_too_costly_and_another_request_begins_the_next() -> None:
    def check() -> None:
        queue = filled(request("a", [3, 9, 1]), request("b", [2, 2, 2]))
        assert taken(queue, 4, 10) == "a"
        assert taken(queue, 4, 10) == "bb"
        assert taken(queue, 4, 10) == "aa"
        assert taken(queue, 4, 10) == "b"
        assert (queue.items, queue.cost) == (0, 0)

    in_a_loop(check)


def test_an_item_over_the_limit_is_a_batch_of_its_own() -> None:
    def check() -> None:
        queue = filled(request("a", [50, 1]))
        assert taken(queue, 8, 10) == "a"
        assert taken(queue, 8, 10) == "a"

    in_a_loop(check)


def test_what_is_removed_counts_no_more() -> None:
    def check() -> None:
        first, second = request("a", [5, 6, 7]), request("b", [1])
        queue = filled(first, second)
        assert taken(queue, 1, 99) == "a"
        queue.remove(first)
        queue.remove(first)
        assert (queue.items, queue.cost) == (1, 1)
        assert queue.clear() == [second]
        assert (queue.items, queue.cost) == (0, 0)

    in_a_loop(check)


def test_the_last_outcome_answers_the_caller_and_a_late_one_is_no_error() -> None:
    def check() -> None:
        one = request("a", [1, 1])
        one.put(1, 0.5)
        assert not one.gone
        one.put(0, 0.25)
        assert one.future.result() == [0.25, 0.5]
        one.fail(RuntimeError("too late"))
        assert one.future.result() == [0.25, 0.5]

    in_a_loop(check)
