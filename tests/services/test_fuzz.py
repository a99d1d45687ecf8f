"""Spoilt requests in small numbers; `python -m benchmarks.fuzz --requests 100000` sends many."""

from __future__ import annotations

from importlib.resources import files

import pytest

from benchmarks.fuzz import coverage, targets
from rewardzoo.clients import wire
from rewardzoo.services.inference import read_items

needs_mini = pytest.mark.skipif(
    not (files("rewardzoo.rewards") / "minis/hpsv2/model.safetensors").is_file(),
    reason="the weights of hpsv2:mini are not in this checkout",
)


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_the_parser_reads_or_refuses_whatever_it_is_given(count: int) -> None:
    report = targets.fuzz_parser(count)
    assert report.failures == []
    assert sum(report.statuses.values()) == count
    assert report.statuses["read"] > count / 20, "the messages never get far"
    assert report.statuses["refused"] > count / 20, "the messages are not spoilt"


@needs_mini
@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_the_service_answers_whatever_it_is_asked(count: int) -> None:
    report = targets.fuzz_app(count)
    assert report.failures == []
    assert sum(report.statuses.values()) == count
    assert report.statuses["200"] > count / 20
    assert report.statuses["400"] > count / 20


@needs_mini
@pytest.mark.slow
def test_a_real_server_is_what_it_was_after_whatever_it_is_sent() -> None:
    report, _ = targets.fuzz_server(300)
    assert report.failures == []
    assert report.statuses["200"] > 5


def test_an_answer_that_must_not_be_is_found() -> None:
    report = targets.Report()
    for outcome, seconds in [("500", 0.1), ("502", 0.1), ("crash", 0.1), ("200", targets.SLOW + 1)]:
        report.note("it", outcome, seconds)
    for outcome in ("200", "400", "503", "504"):
        report.note("it", outcome, 0.1)
    assert len(report.failures) == 4


def test_the_search_by_coverage_begins_from_messages_that_are_read() -> None:
    for data in coverage.seeds().values():
        found = wire.decode(data[2:], int.from_bytes(data[:2], "little"), key="inputs")
        assert len(read_items(found)) == len(found.tensors["prompts"])
