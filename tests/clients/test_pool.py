from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rewardzoo.clients import RewardClient, pool
from rewardzoo.clients.pool import Pool
from rewardzoo.clients.transport import Part, Reply, Transport
from rewardzoo.errors import OverloadedError, RequestError, UnavailableError

IMAGE = np.ones((2, 2, 3), np.uint8)
PART = Part([IMAGE], ["a"])


class Replica(Transport):
    """Answers with its number, after raising what is in `errors`."""

    def __init__(self, number: int, *errors: Exception, wait: float = 0.0) -> None:
        self.number, self.errors, self.wait = number, list(errors), wait
        self.asked: list[str] = []
        self.alive = True
        self.probes = 0

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        self.asked.append(part.id)
        time.sleep(self.wait)
        if self.errors:
            raise self.errors.pop(0)
        if not self.alive:
            raise UnavailableError("gone")
        return Reply([float(self.number)] * len(part))

    def ready(self, *, timeout: float) -> bool:
        self.probes += 1
        return self.alive

    def rewards(self, *, deadline: float) -> list[Any]:
        if not self.alive:
            raise UnavailableError("gone")
        return [self.number]

    def close(self) -> None: ...


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_PROBE_PAUSE", 0.02)
    monkeypatch.setattr(pool, "_SILENCE", 0.05)


def ask(group: Pool, seconds: float = 5) -> float:
    return group.infer("r", PART, deadline=time.monotonic() + seconds).scores[0]


def test_the_replica_with_the_fewest_outstanding_is_asked() -> None:
    replicas = [Replica(0, wait=0.3), Replica(1), Replica(2, wait=0.3)]
    group = Pool(replicas)
    blocked = [threading.Thread(target=ask, args=(group,)) for _ in range(8)]
    for thread in blocked:
        thread.start()
        time.sleep(0.01)
    for thread in blocked:
        thread.join()
    assert len(replicas[1].asked) >= 4


def test_a_dead_replica_is_passed_over_until_a_probe_finds_it_back(quick: None) -> None:
    dead, alive = Replica(0), Replica(1)
    dead.alive = False
    group = Pool([dead, alive])
    assert [ask(group) for _ in range(20)] == [1] * 20
    assert len(dead.asked) <= 1
    dead.alive = True
    before = len(dead.asked)
    deadline = time.monotonic() + 5
    while len(dead.asked) == before:
        ask(group)
        assert time.monotonic() < deadline
    group.close()


def test_a_part_keeps_its_id_on_its_way_through_the_replicas() -> None:
    replicas = [Replica(i, UnavailableError("gone"), UnavailableError("gone")) for i in range(3)]
    ask(Pool(replicas))
    ids = [i for replica in replicas for i in replica.asked]
    assert len(ids) > 3
    assert set(ids) == {PART.id}


def test_a_full_replica_is_passed_over_for_as_long_as_it_asks() -> None:
    full = Replica(0, OverloadedError("full", 30.0))
    group = Pool([full, Replica(1)])
    assert {ask(group) for _ in range(20)} == {1.0}
    assert len(full.asked) <= 1
    assert full.probes == 0


def test_a_refusal_is_not_taken_elsewhere() -> None:
    replicas = [Replica(0, RequestError("no")), Replica(1, RequestError("no"))]
    with pytest.raises(RequestError, match="no"):
        ask(Pool(replicas))
    assert sum(len(r.asked) for r in replicas) == 1


def test_when_all_are_gone_the_error_says_how_often_it_was_tried(quick: None) -> None:
    replicas = [Replica(0), Replica(1)]
    for replica in replicas:
        replica.alive = False
    group = Pool(replicas)
    with pytest.raises(UnavailableError, match=r"gone \(tried \d+ times in"):
        ask(group, 0.5)
    group.close()


def test_a_hedged_part_is_answered_by_the_faster_replica() -> None:
    slow = Replica(0, wait=1.0)
    start = time.monotonic()
    group = Pool([slow, Replica(1)], hedge_after=0.05)
    assert {ask(group) for _ in range(6)} == {1.0}
    assert time.monotonic() - start < 0.9
    with pytest.raises(ValueError, match="hedge_after must be > 0"):
        Pool([slow], hedge_after=0)


def test_without_hedging_a_slow_replica_that_is_alive_is_waited_for(quick: None) -> None:
    slow, other = Replica(0, wait=0.4), Replica(1)
    group = Pool([slow, other])
    while not slow.asked:
        ask(group)
    assert slow.probes >= 1
    assert not group._replicas().all[0].down


def test_a_silent_replica_that_fails_its_health_check_is_given_up(quick: None) -> None:
    hung = Replica(0, wait=2.0)
    hung.alive = False
    group = Pool([hung, Replica(1)])
    start = time.monotonic()
    while not hung.asked:
        assert ask(group) == 1
    assert time.monotonic() - start < 1.5
    group.close()


def test_any_asks_the_next_one_where_one_is_gone() -> None:
    gone, here = Replica(0), Replica(1)
    gone.alive = False
    group = Pool([gone, here])
    for _ in range(8):
        assert group.any(lambda server: server.rewards(deadline=0)) == [1]
    assert group.ready(timeout=1)
    here.alive = False
    with pytest.raises(UnavailableError):
        group.any(lambda server: server.rewards(deadline=0))
    assert not group.ready(timeout=1)


@pytest.fixture
def two(make_server: Any) -> Iterator[list[Any]]:
    servers = [make_server(delay=0.005) for _ in range(2)]
    for server in servers:
        server.start()
    yield servers
    for server in servers:
        if not server.stopping.is_set():
            server.stop()


def test_one_of_two_servers_killed_mid_call_reaches_nobody_and_each_item_is_scored_once(
    two: list[Any], make_server: Any
) -> None:
    images = [np.full((32, 32, 3), i % 200, dtype=np.uint8) for i in range(2000)]
    back = make_server(port=two[0].port)

    def strike() -> None:
        give_up = time.monotonic() + 10
        while len(two[0].seen) < 3 and time.monotonic() < give_up:
            time.sleep(0.001)
        two[0].stop()
        time.sleep(0.1)
        back.start()

    thread = threading.Thread(target=strike)
    thread.start()
    with RewardClient([s.url for s in two], timeout=20, reward="sum") as client:
        scores = client.score(images, "a cat")
        thread.join()
        assert_array_equal(scores, [32 * 32 * 3 * (i % 200) for i in range(2000)])
        deadline = time.monotonic() + 10
        while not back.seen:
            client.score(images[:64], "a cat")
            assert time.monotonic() < deadline, "the replica that came back got nothing"
        assert client.ready()
        assert client.rewards() == []
    back.stop()
    assert two[1].seen
