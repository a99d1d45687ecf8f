"""Upstream's scores against ours, one test a case; and that no recipe is without its case."""

from __future__ import annotations

import json
import math
import shutil
from functools import cache
from pathlib import Path

import pytest

from rewardzoo.cli.parity import FIXTURES, FULL_SIZE, ROOT, page, rows
from rewardzoo.rewards import resolve, specs
from rewardzoo.rewards._parity import Result, check_case, detail_difference, find_cases, read_case

CASES = [folder.name for folder in find_cases(FIXTURES)]
SLOW = {"grounding-t2i-r1", "vqascore-llava-onevision-frames"}
WITHOUT_A_CASE: dict[str, str] = {}
"""Recipes that no oracle has scored, and why. It may only shrink."""


@cache
def result_of(name: str) -> Result:
    return check_case(FIXTURES / name)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
def test_scores_equal_upstreams(name: str) -> None:
    result = result_of(name)
    assert result.ok, "\n".join(result.faults)
    assert result.tolerance <= 1e-5
    assert result.dtype == "float32"


@pytest.mark.parametrize("name", CASES)
def test_a_case_asks_enough_and_its_scores_differ(name: str) -> None:
    case = read_case(FIXTURES / name)
    scores = [pair.score for pair in case.pairs if pair.score is not None]
    assert len(case.pairs) >= 24
    assert len({pair.image for pair in case.pairs}) >= 12
    assert max(scores) - min(scores) > 1e-2 * max(map(abs, scores))
    size = sum(path.stat().st_size for path in (FIXTURES / name).rglob("*") if path.is_file())
    assert size < 3 * 2**20


def test_every_recipe_has_a_case() -> None:
    proven = {read_case(FIXTURES / name).recipe for name in CASES}
    recipes = {variant.recipe for spec in specs() for variant in spec.variants if not variant.is_mini}
    assert recipes - proven == set(WITHOUT_A_CASE)


def test_every_case_has_its_oracle_and_its_recipe_is_the_variants() -> None:
    for name in CASES:
        case = read_case(FIXTURES / name)
        assert resolve(case.reward)[1].recipe == case.recipe, name
        assert case.oracle["name"], name
        assert case.environment, name


@pytest.mark.slow
def test_the_page_is_what_the_command_writes_now() -> None:
    now = page([result_of(name) for name in CASES], FULL_SIZE)
    written = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    assert without_differences(written) == without_differences(now), (
        "run `rewardzoo parity --markdown docs/parity.md`"
    )


def without_differences(text: str) -> list[str]:
    """The page's lines, without the last cell of a table's row: it varies between machines."""
    return [line.rpartition(" | ")[0] if line.startswith("| `") else line for line in text.splitlines()]


def copy_of(name: str, folder: Path) -> Path:
    shutil.copytree(FIXTURES / name, folder / "fixtures" / name)
    shutil.copytree(FIXTURES / "_shared" / "hpsv2", folder / "fixtures" / "_shared" / "hpsv2")
    (folder / "inputs").symlink_to(FIXTURES.parent / "inputs")
    return folder / "fixtures" / name


def change(folder: Path, **edits: object) -> None:
    row = json.loads((folder / "case.json").read_text())
    row["pairs"] = row["pairs"][:3]
    row.update({key: value for key, value in edits.items() if key != "pair"})
    row["pairs"][1].update(edits.get("pair", {}))
    (folder / "case.json").write_text(json.dumps(row))


def test_a_score_that_is_off_by_a_ten_thousandth_is_found_by_its_pair(tmp_path: Path) -> None:
    folder = copy_of("hpsv2-antialias", tmp_path)
    score = read_case(folder).pairs[1].score
    assert score is not None
    change(folder, pair={"score": score * 1.0001})
    result = check_case(folder)
    assert not result.ok
    assert result.difference == pytest.approx(1e-4, rel=0.1)
    (fault,) = result.faults
    assert "pair 1 (square.png" in fault
    assert "**" in rows([result])[0][-1]


def test_a_case_that_cannot_be_loaded_is_a_failing_row(tmp_path: Path) -> None:
    folder = copy_of("hpsv2-antialias", tmp_path)
    change(folder, files={"checkpoint": "missing.pt"})
    result = check_case(folder)
    assert not result.ok
    assert "missing.pt" in result.faults[0]
    assert result.recipe == "hpsv2/antialias"
    (folder / "case.json").write_text("{}")
    assert "is not a parity case" in check_case(folder).faults[0]


def test_a_detail_that_upstream_does_not_give_alike_is_a_fault(tmp_path: Path) -> None:
    folder = copy_of("hpsv2-antialias", tmp_path)
    change(folder, pair={"details": {"sigma": 0.5}})
    assert "sigma is None" in check_case(folder).faults[0]


def test_a_pair_that_upstream_cannot_score_must_fail_here_with_that_message(tmp_path: Path) -> None:
    folder = copy_of("hpsv2-antialias", tmp_path)
    change(folder, pair={"score": None, "error": "too small"})
    assert "upstream 'too small'" in check_case(folder).faults[0]


def test_details_are_compared_by_their_numbers_whatever_their_order() -> None:
    assert detail_difference({"a": [1, 2.0], "b": "x"}, {"b": "x", "a": [1.0, 2.0]}) == 0
    assert detail_difference({"a": 1.0}, {"a": 1.1}) == pytest.approx(1 / 11)
    assert detail_difference({"a": "x"}, {"a": "y"}) == math.inf
    assert detail_difference([1.0], [1.0, 2.0]) == math.inf
    assert detail_difference(1e-9, 0.0, largest=1.0) == pytest.approx(1e-6)


def test_names_choose_cases_by_family_reward_recipe_or_folder() -> None:
    def chosen(name: str) -> list[str]:
        return [folder.name for folder in find_cases(FIXTURES, [name])]

    assert chosen("hpsv2") == ["hpsv2-antialias", "hpsv2-no-antialias"]
    assert (
        chosen("hpsv2:v2.1") == chosen("hpsv2/antialias") == chosen("hpsv2-antialias") == ["hpsv2-antialias"]
    )
    with pytest.raises(ValueError, match="no parity case for 'hpsv9'"):
        chosen("hpsv9")


def test_where_there_are_no_cases_the_error_says_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clone it"):
        find_cases(tmp_path)
