from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from rewardzoo.rewards import Batch
from rewardzoo.rewards._batch import split

CPU = torch.device("cpu")


def make_batch() -> Batch:
    inputs = {"pixel_values": torch.rand(2, 3), "image_index": torch.tensor([0, 1])}
    return Batch(2, (0, 1), {}, inputs, ["a", "b"])


def test_a_batch_moves_its_floats_to_the_dtype_and_keeps_its_integers() -> None:
    moved = make_batch().to(CPU, torch.bfloat16)
    assert moved.inputs["pixel_values"].dtype == torch.bfloat16
    assert moved.inputs["image_index"].dtype == torch.int64
    assert moved.asked == ["a", "b"]


def test_a_batch_copied_ahead_is_waited_for_by_the_stream_that_uses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The order of the CUDA calls, with stand-ins for the streams: there is no GPU in these tests."""
    calls: list[Any] = []

    class Stream:
        device = CPU

        def wait_event(self, event: Any) -> None:
            calls.append(("wait", event))

    class Event:
        def record(self, stream: Any) -> None:
            calls.append(("record", stream))

    @contextmanager
    def stream_of(stream: Any) -> Iterator[None]:
        calls.append(("enter", stream))
        yield
        calls.append(("leave", stream))

    copying, computing = Stream(), Stream()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", stream_of)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: calls.append(("pin", tensor.dtype)) or tensor)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: calls.append(("used", stream)))
    batch = make_batch()
    ahead = batch.copy_ahead(copying, torch.bfloat16)  # type: ignore[arg-type]
    assert calls == [
        ("enter", copying),
        ("pin", torch.bfloat16),  # cast before it is pinned and copied
        ("pin", torch.int64),
        ("record", copying),
        ("leave", copying),
    ]
    calls.clear()
    arrived = ahead.to(CPU, torch.bfloat16)
    assert calls == [("wait", ahead.copied), ("used", computing), ("used", computing)]
    assert arrived.copied is None
    expected = batch.to(CPU, torch.bfloat16).inputs
    for name, tensor in arrived.inputs.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("costs", "most", "sizes"),
    [
        ([1] * 7, None, [3, 3, 1]),
        ([5, 5, 5, 5], 10, [2, 2]),
        ([50, 1, 1, 50], 10, [1, 2, 1]),
        ([], 10, []),
        ([4], None, [1]),
    ],
)
def test_items_are_cut_into_batches_by_number_and_cost(
    costs: list[int], most: int | None, sizes: list[int]
) -> None:
    parts = split(costs, 3, most)
    assert [len(costs[part]) for part in parts] == sizes
    assert [i for part in parts for i in range(len(costs))[part]] == list(range(len(costs)))
