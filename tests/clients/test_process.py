"""Forks, pickles, threads: a client works wherever it is carried."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rewardzoo.clients import GroupZ, Mixture, RewardClient, RunningZ
from rewardzoo.clients.process import PerProcess

IMAGES = [np.full((2, 2, 3), i, dtype=np.uint8) for i in range(5)]
SUMS = [12.0 * i for i in range(5)]


def test_each_process_makes_its_own_and_threads_share_it() -> None:
    made: list[int] = []

    def make() -> object:
        made.append(os.getpid())
        return object()

    value = PerProcess(make)
    assert value.made() is None
    with ThreadPoolExecutor(8) as threads:
        assert len({id(v) for v in threads.map(lambda _: value(), range(50))}) == 1
    assert value.made() is value()


def test_a_mixture_is_pickled_with_what_it_has_learnt() -> None:
    mixture = Mixture({"a": 1.0, "b": 1.0}, normalize={"a": RunningZ(), "b": GroupZ()})
    mixture.total({"a": [1, 3], "b": [0, 1]})
    again = pickle.loads(pickle.dumps(mixture))  # noqa: S301
    assert again.state_dict() == mixture.state_dict() != Mixture({"a": 1.0, "b": 1.0}).state_dict()


def in_child(client: RewardClient, results: Any) -> None:
    results.put((client.score(IMAGES, "a cat").tolist(), threading.active_count()))


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_client_in_use_works_in_forked_children_and_in_their_parent(server: Any) -> None:
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    with RewardClient(server.url, reward="sum", timeout=10) as client:
        client.score(IMAGES, "a cat")
        server.delay = 0.2  # the fork comes while a request is under way
        future = client.submit(IMAGES, "a cat")
        children = [fork.Process(target=in_child, args=(client, results)) for _ in range(2)]
        for child in children:
            child.start()
        assert [results.get(timeout=10)[0] for _ in children] == [SUMS] * 2
        for child in children:
            child.join(10)
        assert [child.exitcode for child in children] == [0, 0]
        assert_array_equal(future.result(5), SUMS)
        assert_array_equal(client.score(IMAGES, "a cat"), SUMS)


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_a_client_in_use_is_pickled_without_its_connections(server: Any, pickler: Any) -> None:
    with RewardClient([server.url], reward={"sum": 2.0}, timeout=7, token="t") as client:
        client.score(IMAGES, "a cat")
        with pickler.loads(pickler.dumps(client)) as again:
            assert_array_equal(again.score(IMAGES, "a cat"), 2 * np.array(SUMS))
            assert (again.urls, again.patience) == (client.urls, client.patience)
    assert server.headers[-1]["Authorization"] == "Bearer t"


def test_a_closure_over_a_client_reaches_another_process(server: Any) -> None:
    with RewardClient(server.url, reward="sum") as client:
        shipped = cloudpickle.dumps(lambda: print(client.score(IMAGES, "a cat").tolist()))
    code = "import sys, cloudpickle; cloudpickle.loads(sys.stdin.buffer.read())()"
    done = subprocess.run([sys.executable, "-c", code], input=shipped, capture_output=True, check=True)
    assert done.stdout.decode().strip() == str(SUMS)


def test_threads_share_one_client(server: Any) -> None:
    with RewardClient(server.url, reward="sum") as client, ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda i: client.score([IMAGES[i % 5]], "a cat")[0], range(100)))
    assert found == [SUMS[i % 5] for i in range(100)]
