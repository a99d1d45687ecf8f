"""Rows through rewards, without Ray: order, bad rows, failing models, and how much is in memory."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rewardzoo.errors import ItemError
from rewardzoo.rewards import Batch, Outcome, Score
from rewardzoo.services.bulk import scoring
from rewardzoo.services.bulk.rows import Row
from rewardzoo.services.bulk.scoring import RowScorer

POISON = 13


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(n: int) -> list[Row]:
    return [Row(i, prompt=f"p{i}", image=png(i)) for i in range(n)]


class Fake:
    """Scores an image by its grey value, and fails as it is told."""

    spec = SimpleNamespace(max_batch=4)

    def __init__(self, fails: type[Exception] | None = None, most: int = 100, on: int = -1) -> None:
        self.fails, self.most, self.on = fails, most, on
        self.sizes: list[int] = []

    def prepare(self, images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Any]) -> Batch:
        values = [int(image[0, 0, 0]) for image in images]
        return Batch(len(images), tuple(range(len(images))), {}, {}, values)

    def run(self, batch: Batch) -> list[Outcome]:
        self.sizes.append(len(batch))
        if self.fails and (len(batch) > self.most or self.on in batch.asked):
            raise self.fails("no")
        return [Score(float(value), {"grey": value}) for value in batch.asked]


def scored(model: Any, some: Sequence[Row], **options: Any) -> list[Outcome]:
    return [row.outcomes["fake"] for row in RowScorer({"fake": model}, **options).score(some)]


def values(outcomes: Sequence[Outcome]) -> list[float | None]:
    return [None if isinstance(outcome, ItemError) else outcome.value for outcome in outcomes]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_size", [None, 1, 5, 100])
def test_rows_come_out_in_order_without_their_images(threads: int, batch_size: int | None) -> None:
    found = list(RowScorer({"fake": Fake()}, batch_size=batch_size, threads=threads).score(rows(11)))
    assert [row.row.number for row in found] == list(range(11))
    assert not any(row.row.image for row in found)
    assert values([row.outcomes["fake"] for row in found]) == list(range(11))


def test_bad_rows_fail_alone_with_their_reason() -> None:
    some = rows(8)
    some[1] = Row(1, error="no JSON")
    some[2] = Row(2, prompt=" ", image=png(2))
    some[3] = Row(3, prompt="p", image=png(3)[:40])
    some[5] = Row(5, prompt="p", image="/no/such/file.png")
    some[6] = Row(6, prompt="p\udcff", image=png(6))
    found = scored(Fake(), some)
    assert values(found) == [0, None, None, None, 4, None, None, 7]
    for place, reason in ((1, "no JSON"), (2, "empty"), (3, "damaged"), (5, "no/such"), (6, "Unicode")):
        assert reason in str(found[place])


def test_an_item_that_the_model_cannot_take_fails_alone() -> None:
    found = scored(Fake(RuntimeError, on=POISON), rows(20))
    assert [i for i, value in enumerate(values(found)) if value is None] == [POISON]
    assert "failed on this item: no" in str(found[POISON])


class NoRoomError(RuntimeError):
    """As a CPU or cuBLAS says it."""

    def __init__(self, _: str) -> None:
        super().__init__("DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, NoRoomError])
def test_out_of_memory_halves_the_batch_and_later_ones_are_small_at_once(error: type[Exception]) -> None:
    model = Fake(error, most=2)
    assert values(scored(model, rows(40), batch_size=8)) == list(range(40))
    assert model.sizes[-4:] == [2, 2, 2, 2]
    assert max(model.sizes[-10:]) == 2


def test_a_lost_device_is_no_rows_fault() -> None:
    with pytest.raises(torch.AcceleratorError):
        scored(Fake(torch.AcceleratorError, most=0), rows(4))


def test_details_without_a_form_in_json_are_that_items_error() -> None:
    class Odd(Fake):
        def run(self, batch: Batch) -> list[Outcome]:
            return [Score(1.0, {"x": object() if value == 1 else np.float32(2)}) for value in batch.asked]

    first, second = scored(Odd(), rows(2))
    assert isinstance(first, Score)
    assert first.details == {"x": 2.0}
    assert isinstance(second, ItemError)


def test_an_image_is_decoded_once_for_all_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    real = scoring.decode_image
    monkeypatch.setattr(scoring, "decode_image", lambda data: decoded.append(data) or real(data))
    models: Mapping[str, Any] = {"a": Fake(), "b": Fake()}
    assert [sorted(row.outcomes) for row in RowScorer(models).score(rows(5))] == [["a", "b"]] * 5
    assert len(decoded) == 5


def test_no_more_rows_are_read_than_the_batches_ahead_hold() -> None:
    read = 0

    def endless() -> Iterator[Row]:
        nonlocal read
        while True:
            yield Row(read, prompt="p", image=png(1))
            read += 1

    found = RowScorer({"fake": Fake()}, threads=2).score(endless())
    for given in range(1, 100):
        next(found)
        assert read <= given + 4 * (2 + 2)
