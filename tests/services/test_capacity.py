from __future__ import annotations

import logging

import pytest

from rewardzoo.errors import OverloadedError
from rewardzoo.services.capacity import Admission, BatchLimit


def test_bytes_beyond_the_room_are_refused_and_given_back_at_the_end() -> None:
    admission = Admission(100)
    with admission.enter() as first, admission.enter() as second:
        first(60)
        with pytest.raises(OverloadedError, match="60 bytes of requests are here already and 50") as refusal:
            second(50)
        assert refusal.value.retry_after
        second(40)
        assert admission.held == 100
    assert admission.held == 0


def test_a_request_larger_than_the_room_is_let_in_alone_and_may_grow() -> None:
    admission = Admission(100)
    with admission.enter() as only:
        only(150)
        only(50)
        with pytest.raises(OverloadedError), admission.enter() as other:
            other(1)
    assert admission.held == 0


def test_a_limit_shrinks_to_half_of_what_failed_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    limit = BatchLimit("vqascore", 64)
    with caplog.at_level(logging.WARNING):
        limit.shrink(64)
        limit.shrink(32)
    assert limit.cost == 16
    assert "vqascore" in caplog.text
    limit.shrink(64)  # an older and larger batch that failed later teaches nothing new
    assert limit.cost == 16


def test_a_limit_is_never_less_than_one() -> None:
    limit = BatchLimit("x", 2)
    for _ in range(3):
        limit.shrink(1)
    assert limit.cost == 1


def test_a_limit_grows_back_slowly_and_slower_after_each_failure() -> None:
    def batches_until_full(limit: BatchLimit) -> int:
        count = 0
        while limit.cost < limit.most:
            limit.passed()
            count += 1
            assert count < 100_000
        return count

    limit = BatchLimit("x", 64)
    limit.shrink(64)
    first = batches_until_full(limit)
    limit.shrink(64)
    assert batches_until_full(limit) > first >= 500
