from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from rewardzoo.clients.scorer import Scorer
from rewardzoo.clients.transport import Part, Reply, Transport
from rewardzoo.errors import ItemsFailedError, RequestError


class Sums(Transport):
    """A transport without a network: a score is the first pixel, or the length of a file."""

    def __init__(self, *replies: Reply | Exception) -> None:
        self.parts: list[Part] = []
        self.replies = list(replies)
        self.flying = self.most_flying = 0
        self.lock = threading.Lock()

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        with self.lock:
            self.parts.append(part)
            reply = self.replies.pop(0) if self.replies else None
            self.flying += 1
            self.most_flying = max(self.most_flying, self.flying)
        time.sleep(0.001)
        with self.lock:
            self.flying -= 1
        if isinstance(reply, Exception):
            raise reply
        values = [len(p) if isinstance(p, bytes) else int(p.flat[0]) for p in part.payloads]
        return reply or Reply([float(v) for v in values], provenance={"reward": model})

    def close(self) -> None: ...


def scorer(transport: Sums, *, max_in_flight: int = 4) -> Scorer:
    return Scorer(transport, timeout=60, max_in_flight=max_in_flight)


def image(value: int, size: tuple[int, int] = (2, 2)) -> np.ndarray[Any, Any]:
    return np.full((*size, 3), value, dtype=np.uint8)


def png(tmp: Any, width: int) -> bytes:
    path = tmp / "a.png"
    Image.new("RGB", (width, 1)).save(path)
    return bytes(path.read_bytes())


@pytest.mark.parametrize("max_in_flight", [1, 4])
def test_mixed_sizes_and_files_come_back_in_order(max_in_flight: int, tmp_path: Any) -> None:
    file = png(tmp_path, 3)
    sizes = [(2, 2), (4, 2), (2, 4)]
    images: list[Any] = [image(i % 251, sizes[i % 3]) for i in range(300)]
    images[7] = images[200] = file
    transport = Sums()
    scores = scorer(transport, max_in_flight=max_in_flight).score(images, "a cat", reward="r")
    expected = [float(i % 251) for i in range(300)]
    expected[7] = expected[200] = len(file)
    assert scores.dtype == np.float32
    assert_array_equal(scores, np.array(expected, np.float32))
    for part in transport.parts:
        assert len({"file" if isinstance(p, bytes) else p.shape for p in part.payloads}) == 1


def test_a_request_of_one_size_keeps_the_order_of_its_items() -> None:
    transport = Sums()
    scorer(transport).score([image(i) for i in range(64)], "a cat", reward="r")
    assert [[p.flat[0] for p in part.payloads] for part in transport.parts] == [list(range(64))]


def test_parts_hold_at_most_64_items_and_32_megabytes() -> None:
    transport = Sums()
    big = np.broadcast_to(np.uint8(1), (2000, 2000, 3))
    scorer(transport).score([image(1)] * 150 + [big] * 5, "a cat", reward="r")
    lengths = sorted(len(part) for part in transport.parts)
    assert lengths == [1, 2, 2, 22, 64, 64]


def test_no_more_parts_are_in_flight_than_allowed() -> None:
    transport = Sums()
    scorer(transport, max_in_flight=3).score([image(1)] * 64 * 9, "a cat", reward="r")
    assert 1 < transport.most_flying <= 3


@pytest.mark.parametrize(
    "batch",
    [
        np.stack([image(3), image(4)]),
        torch.full((2, 3, 2, 2), 3, dtype=torch.uint8) + torch.arange(2).byte()[:, None, None, None],
        (torch.tensor([3.0, 4.0])[:, None, None, None] / 255).expand(2, 3, 2, 2),
        (image(i) for i in (3, 4)),
    ],
    ids=["array", "uint8-tensor", "float-tensor", "generator"],
)
def test_a_batch_in_one_array_is_as_many_images(batch: Any) -> None:
    assert_array_equal(scorer(Sums()).score(batch, ["a", "b"], reward="r"), [3, 4])


def test_items_that_cannot_be_sent_fail_alone() -> None:
    images = [image(1), np.full((2, 2, 3), np.nan), image(3), image(4)]
    transport = Sums()
    result = scorer(transport).score_result(images, ["a", "b", "", "d"], reward="r")
    assert_array_equal(result.scores, [1, np.nan, np.nan, 4])
    assert list(result.errors) == [1, 2]
    assert "NaN" in str(result.errors[1])
    assert "the prompt is empty" in str(result.errors[2])
    assert result.provenance == {"reward": "r"}


def test_failed_items_raise_or_are_nan_and_never_a_number() -> None:
    def client() -> Scorer:
        return scorer(Sums(Reply([1.0, float("nan"), float("nan")], {1: "blurred"})))

    images = [image(1)] * 3
    with pytest.raises(ItemsFailedError, match="2 of 3 items failed: item 1: blurred; item 2") as error:
        client().score(images, "a", reward="r")
    assert_array_equal(error.value.result.scores, [1, np.nan, np.nan])
    scores = client().score(images, "a", reward="r", on_error="nan")
    assert_array_equal(scores, [1, np.nan, np.nan])
    with pytest.raises(ValueError, match="'raise', 'nan' or 'none', got 'zero'"):
        client().score(images, "a", reward="r", on_error="zero")  # type: ignore[arg-type]


def test_a_score_beside_an_error_is_not_believed() -> None:
    result = scorer(Sums(Reply([1.0], {0: "blurred"}))).score_result([image(1)], "a", reward="r")
    assert np.isnan(result.scores[0])


@pytest.mark.parametrize("max_in_flight", [1, 4])
def test_a_failed_part_fails_the_call_and_stops_it(max_in_flight: int) -> None:
    transport = Sums(RequestError("no"))
    with pytest.raises(RequestError, match="no"):
        scorer(transport, max_in_flight=max_in_flight).score([image(1)] * 64 * 20, "a", reward="r")
    assert len(transport.parts) <= 2 * max_in_flight
    assert transport.flying == 0


def test_no_images_are_no_request() -> None:
    transport = Sums()
    assert scorer(transport).score([], [], reward="r").shape == (0,)
    assert transport.parts == []


@pytest.mark.parametrize(
    ("images", "prompts", "says"),
    [
        ([image(1)] * 2, ["a"] * 3, "got 2 images and 3 prompts"),
        (image(1), "a", r"must be \(N, H, W, C\).*got 3 dimensions. For a single image use"),
        (Image.new("RGB", (2, 2)), "a", r"got one Image: use \[image\]"),
        ("a.png", "a", "got one str"),
    ],
)
def test_arguments_that_do_not_fit_are_a_value_error(images: Any, prompts: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        scorer(Sums()).score(images, prompts, reward="r")


def test_metadata_travels_with_its_item() -> None:
    transport = Sums()
    images = [image(1), image(2, (4, 4)), image(3)]
    steps: Sequence[dict[str, int]] = [{"step": 0}, {"step": 1}, {"step": 2}]
    scorer(transport, max_in_flight=1).score(images, "a", reward="r", metadata=steps)
    assert [p.metadata for p in transport.parts] == [
        ['{"step": 0}', '{"step": 2}'],
        ['{"step": 1}'],
    ]
    with pytest.raises(ValueError, match="got 3 images and 1 metadata"):
        scorer(transport).score(images, "a", reward="r", metadata=steps[:1])


def test_details_come_back_with_their_items_and_not_with_failed_ones() -> None:
    replies = [
        Reply([1.0, 2.0], details={1: {"step": 2}}),
        Reply([float("nan")], {0: "blurred"}, details={0: {"step": 1}}),
    ]
    images = [image(1), image(2, (4, 4)), image(3)]
    result = scorer(Sums(*replies), max_in_flight=1).score_result(images, "a", reward="r")
    assert list(result.details) == [{}, {}, {"step": 2}]
    assert list(result.errors) == [1]
    assert scorer(Sums()).score_result(images, "a", reward="r").details == ({}, {}, {})


def test_provenance_that_differs_between_servers_is_a_list() -> None:
    replies = [Reply([0.0] * 64, provenance={"a": 1, "b": n}) for n in (1, 2, 1)]
    client = scorer(Sums(*replies), max_in_flight=1)
    result = client.score_result([image(1)] * 64 * 3, "a", reward="r")
    assert result.provenance == {"a": 1, "b": [1, 2]}


def test_many_threads_may_share_one_scorer() -> None:
    client = scorer(Sums())
    found: dict[int, Any] = {}

    def call(value: int) -> None:
        found[value] = client.score([image(value)] * 70, "a", reward="r")

    threads = [threading.Thread(target=call, args=(v,)) for v in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for value, scores in found.items():
        assert_array_equal(scores, np.full(70, value))
    assert len(found) == 8


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="timeout must be > 0 and max_in_flight >= 1, got 0 and 4"):
        Scorer(Sums(), timeout=0, max_in_flight=4)
