from __future__ import annotations

import multiprocessing
import pickle
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rewardzoo.clients import RewardClient, ScoreCache
from rewardzoo.clients import cache as module
from rewardzoo.clients.scorer import Scorer
from rewardzoo.clients.transport import Part, Reply, Transport


class Counting(Transport):
    """Scores the first pixel (the length of a file); notes each item it is asked to score."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.provenance = {"weights": "1"}
        self.failing: set[str] = set()

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        self.asked += [(model, prompt) for prompt in part.prompts]
        scores = [float(len(p) if isinstance(p, bytes) else p.flat[0]) for p in part.payloads]
        errors = {i: "blurred" for i, prompt in enumerate(part.prompts) if prompt in self.failing}
        details = {i: {"said": prompt} for i, prompt in enumerate(part.prompts)}
        return Reply(scores, errors, self.provenance, details)

    def close(self) -> None: ...


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ScoreCache]:
    cache = ScoreCache(tmp_path / "deep" / "scores.db")
    yield cache
    cache.close()


def scorer(transport: Transport, cache: ScoreCache) -> Scorer:
    return Scorer(transport, timeout=10, max_in_flight=1, reward="r", cache=cache)


def images(*values: int) -> list[np.ndarray[Any, Any]]:
    return [np.full((2, 2, 3), value, dtype=np.uint8) for value in values]


def prompts(count: int) -> list[str]:
    return [f"p{i}" for i in range(count)]


def test_what_was_scored_once_is_not_sent_again(cache: ScoreCache) -> None:
    transport = Counting()
    with scorer(transport, cache) as client:
        first = client.score_result(images(1, 2, 3), prompts(3))
        again = client.score_result(images(3, 4, 1), ["p2", "new", "p0"])
    assert_array_equal(again.scores, [3, 4, 1])
    assert again.details == ({"said": "p2"}, {"said": "new"}, {"said": "p0"})
    assert again.provenance == first.provenance == {"weights": "1"}
    assert [prompt for _, prompt in transport.asked] == ["p0", "p1", "p2", "new"]


def test_the_hit_rate_is_told(cache: ScoreCache) -> None:
    with scorer(Counting(), cache) as client:
        client.score(images(1, 2, 3), prompts(3))
        client.score(images(1, 2, 3, 4), prompts(4))
        assert client.cache is not None
        info = client.cache.info()
    # The very first item is sent to learn what scores rest on, and not looked up.
    assert (info.hits, info.misses, info.items) == (3, 3, 4)
    assert info.hit_rate == 0.5
    assert info.bytes > 0


def test_another_process_and_another_client_know_it_too(cache: ScoreCache) -> None:
    with scorer(Counting(), cache) as client:
        client.score(images(1, 2, 3), prompts(3))
    transport = Counting()
    with scorer(transport, pickle.loads(pickle.dumps(cache))) as client:  # noqa: S301
        assert_array_equal(client.score(images(1, 2, 3), prompts(3)), [1, 2, 3])
    assert transport.asked == [("r", "p0")], "one item is sent to learn what the scores rest on"


@pytest.mark.parametrize(
    ("image", "prompt", "notes"),
    [
        (np.full((2, 2, 3), 9, np.uint8), "a", {"x": 1}),
        (np.full((1, 4, 3), 1, np.uint8), "a", {"x": 1}),
        (np.full((2, 2, 3), 1, np.uint8), "b", {"x": 1}),
        (np.full((2, 2, 3), 1, np.uint8), "a", {"x": 2}),
    ],
    ids=["pixels", "shape", "prompt", "metadata"],
)
def test_whatever_makes_an_item_another_is_in_its_key(
    cache: ScoreCache, image: Any, prompt: str, notes: Any
) -> None:
    transport = Counting()
    with scorer(transport, cache) as client:
        for _ in range(2):
            client.score(images(1), "a", metadata=[{"x": 1}])
        assert len(transport.asked) == 1
        client.score([image], prompt, metadata=[notes])
        assert len(transport.asked) == 2


def test_the_order_of_metadata_and_the_layout_of_pixels_do_not_matter(cache: ScoreCache) -> None:
    transport = Counting()
    rgba = np.dstack([np.full((2, 2, 3), 1, np.uint8), np.full((2, 2), 9, np.uint8)])
    with scorer(transport, cache) as client:
        client.score(images(1), "a", metadata=[{"x": 1, "y": 2}])
        client.score([rgba], "a", metadata=[{"y": 2, "x": 1}])
        client.score(images(2), "a")
        client.score(images(2), "a", metadata=[{}])
    assert len(transport.asked) == 2


def test_errors_are_not_kept(cache: ScoreCache) -> None:
    transport = Counting()
    transport.failing = {"p1"}
    with scorer(transport, cache) as client:
        result = client.score_result(images(1, 2), prompts(2))
        assert list(result.errors) == [1]
        transport.failing = set()
        assert_array_equal(client.score(images(1, 2), prompts(2)), [1, 2])
    assert [prompt for _, prompt in transport.asked] == ["p0", "p1", "p1"]


def test_a_server_with_other_weights_gets_no_old_score(cache: ScoreCache) -> None:
    transport = Counting()
    with scorer(transport, cache) as client:
        client.score(images(1, 2, 3), prompts(3))
        transport.asked, transport.provenance = [], {"weights": "2"}
        # Nothing tells of the change until an item is sent, as the fourth is here: then all are scored anew.
        result = client.score_result(images(1, 2, 3, 4), prompts(4))
    assert result.provenance == {"weights": "2"}
    assert sorted(prompt for _, prompt in transport.asked) == prompts(4)


def test_an_item_is_sent_now_and_then_to_see_whether_the_server_has_changed(tmp_path: Path) -> None:
    transport = Counting()
    with scorer(transport, ScoreCache(tmp_path / "scores.db", refresh=1e-6)) as client:
        client.score(images(1, 2, 3), prompts(3))
        transport.asked, transport.provenance = [], {"weights": "2"}
        client.score(images(1, 2, 3), prompts(3))
        assert sorted(prompt for _, prompt in transport.asked) == prompts(3)
        transport.asked = []
        client.score(images(1, 2, 3), prompts(3))
        assert transport.asked == [("r", "p0")]


def test_rewards_do_not_share_scores_and_each_is_asked_only_for_what_it_lacks(cache: ScoreCache) -> None:
    transport = Counting()
    with scorer(transport, cache) as client:
        client.score(images(1, 2), prompts(2), reward="a")
        transport.asked = []
        scores = client.score(images(1, 2), prompts(2), reward=["a", "b"])
        assert_array_equal(scores, [[1, 1], [2, 2]])
        assert ("b", "p0") in transport.asked
        transport.asked = []
        client.score(images(1, 2), prompts(2), reward=["a", "b"])
    assert transport.asked == []


def test_the_table_is_bounded_and_what_was_used_last_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GRAIN", 0.0)
    cache = ScoreCache(tmp_path / "scores.db", max_bytes=2**20)
    keys = [i.to_bytes(24, "big") for i in range(12_000)]
    cache.put({keys[0]: (0.0, {})})
    for start in range(1, len(keys), 500):
        cache.put({key: (1.0, {"text": "x" * 100}) for key in keys[start : start + 500]})
        assert cache.get(keys[:1]) == [(0.0, {})]
        assert cache.info().bytes < 1.2 * 2**20
    assert cache.get(keys[1:2]) == [None]
    assert cache.info().items > 1000
    cache.clear()
    assert cache.info().items == 0


def fill(cache: ScoreCache, offset: int) -> None:
    for i in range(offset, offset + 300):
        cache.put({i.to_bytes(24, "big"): (float(i), {})})
        cache.get([(i // 2).to_bytes(24, "big")])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_processes_write_and_read_at_a_time_and_lose_nothing(cache: ScoreCache, method: Any) -> None:
    context = multiprocessing.get_context(method)
    if method == "fork":
        cache.info()  # the parent's connection is open when the children begin
    with context.Pool(3) as pool:
        pool.starmap(fill, [(cache, 300 * i) for i in range(3)])
    found = cache.get([i.to_bytes(24, "big") for i in range(900)])
    assert found == [(float(i), {}) for i in range(900)]


class BusyError(sqlite3.OperationalError):
    """What SQLite says at once when another process is making the same new file."""

    sqlite_errorcode = sqlite3.SQLITE_BUSY


def test_a_file_that_another_process_is_making_is_opened_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([BusyError("database is locked")] * 3)
    connect = sqlite3.connect

    def sometimes(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        if error := next(failures, None):
            raise error
        return connect(*args, **kwargs)

    monkeypatch.setattr(sqlite3, "connect", sometimes)
    cache = ScoreCache(tmp_path / "scores.db")
    cache.put({b"key": (1.0, {})})
    assert cache.get([b"key"]) == [(1.0, {})]


def test_a_file_that_cannot_be_used_costs_no_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "scores.db").write_bytes(b"this is no database" * 100)
    with scorer(Counting(), ScoreCache(tmp_path / "scores.db")) as client:
        assert_array_equal(client.score(images(1, 2), prompts(2)), [1, 2])
    assert "cannot be written: file is not a database" in caplog.text
    with pytest.raises(sqlite3.DatabaseError):
        ScoreCache(tmp_path / "scores.db").info()


def test_a_client_with_a_cache_asks_the_server_once(server: Any, cache: ScoreCache) -> None:
    with RewardClient(server.url, reward="sum", cache=cache) as client:
        for _ in range(3):
            assert_array_equal(client.score(images(1, 2), "a"), [12, 24])
        with pickle.loads(pickle.dumps(client)) as again:  # noqa: S301
            assert_array_equal(again.score(images(1, 2), "a"), [12, 24])
    assert [len(m.tensors["prompts"]) for m in server.seen] == [1, 1, 1]


@pytest.mark.parametrize("options", [{"max_bytes": 10}, {"refresh": 0}])
def test_limits_that_make_no_sense_are_refused(tmp_path: Path, options: Any) -> None:
    with pytest.raises(ValueError, match="max_bytes must be >="):
        ScoreCache(tmp_path / "scores.db", **options)
