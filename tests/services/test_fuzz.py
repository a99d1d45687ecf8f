"""Spoilt requests in small numbers; `python benchmarks/fuzz.py --requests 100000` sends many."""

from __future__ import annotations

import importlib.util
import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest

needs_mini = pytest.mark.skipif(
    not (files("rewardzoo.rewards") / "minis/hpsv2/model.safetensors").is_file(),
    reason="the weights of hpsv2:mini are not in this checkout",
)


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks/fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_the_parser_reads_or_refuses_whatever_it_is_given(fuzz: ModuleType, count: int) -> None:
    report = fuzz.fuzz_parser(count)
    assert report.failures == []
    assert sum(report.statuses.values()) == count
    assert report.statuses["read"] > count / 20, "the messages never get far"
    assert report.statuses["refused"] > count / 20, "the messages are not spoilt"


@needs_mini
@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_the_service_answers_whatever_it_is_asked(fuzz: ModuleType, count: int) -> None:
    report = fuzz.fuzz_app(count)
    assert report.failures == []
    assert sum(report.statuses.values()) == count
    assert report.statuses["200"] > count / 20
    assert report.statuses["400"] > count / 20


@needs_mini
@pytest.mark.slow
def test_a_real_server_is_what_it_was_after_whatever_it_is_sent(fuzz: ModuleType) -> None:
    report, _ = fuzz.fuzz_server(300)
    assert report.failures == []
    assert report.statuses["200"] > 5


def test_an_answer_that_must_not_be_is_found(fuzz: ModuleType) -> None:
    report = fuzz.Report()
    for outcome, seconds in [("500", 0.1), ("502", 0.1), ("crash", 0.1), ("200", fuzz.SLOW + 1)]:
        report.note("it", outcome, seconds)
    for outcome in ("200", "400", "503", "504"):
        report.note("it", outcome, 0.1)
    assert len(report.failures) == 4
