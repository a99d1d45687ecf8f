from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from rewardzoo.clients.compare.summaries import (
    Accuracy,
    Agreement,
    BestOfN,
    Contrast,
    Curve,
    DataInfo,
    Estimate,
    Example,
    Gap,
    Preference,
    RankCorrelation,
    RewardInfo,
    Summary,
    read_summaries,
    read_summary,
    write_summary,
)

ONE = Estimate(0.5, 0.4, 0.6)
COMMON = {
    "data": DataInfo("prefs", "plain", "prefs.jsonl", "mit", 1, 2, 1, "f00"),
    "rewards": (RewardInfo("a", 1, {"weights_sha256": "x"}), RewardInfo("b")),
    "confidence": 0.95,
    "resamples": 100,
    "seed": 0,
    "made": {"command": "rewardzoo compare"},
}
CONTRASTS = (Contrast("a", "b", "all", ONE, 0.01, 0.02),)
EXAMPLE = Example(
    "a", "b", "0", "ein Prompt — π", (0, 1), ("0.png", ""), {"a": (1.0, 2.0), "b": (2.0, 1.0)}, "tie", 1.5
)
SUMMARIES: list[Summary] = [
    Preference(
        **COMMON, rule="so", accuracies=(Accuracy("a", "all", "accuracy", ONE, 1, 1),), contrasts=CONTRASTS
    ),
    BestOfN(
        **COMMON,
        judge=RewardInfo("exact"),
        curves=(Curve("oracle", "all", 1, (1, 2), (0.1, 0.2), (0.0, 0.1), (0.2, 0.3)),),
        gaps=(Gap("a", "all", 2, ONE, ONE),),
        contrasts=CONTRASTS,
    ),
    Agreement(
        **COMMON, correlations=(RankCorrelation("a", "b", "kendall", "prompt", ONE, 1),), examples=(EXAMPLE,)
    ),
]


@pytest.mark.parametrize("summary", SUMMARIES, ids=lambda summary: summary.kind)
def test_what_was_written_is_read_back_the_same(summary: Summary, tmp_path: Path) -> None:
    path = write_summary(tmp_path, summary)
    assert path.name == f"{summary.kind}-prefs.json"
    assert read_summary(path) == summary


def test_all_of_a_folder_are_read(tmp_path: Path) -> None:
    for summary in SUMMARIES:
        write_summary(tmp_path, summary)
    (tmp_path / "other.json").write_text("{}")
    assert list(read_summaries(tmp_path)) == SUMMARIES


def test_what_is_not_defined_is_null_and_read_as_nan(tmp_path: Path) -> None:
    unknown = replace(
        SUMMARIES[2], correlations=(RankCorrelation("a", "b", "k", "overall", Estimate(0.5), 1),)
    )
    path = write_summary(tmp_path, unknown)
    assert json.loads(path.read_text())["correlations"][0]["estimate"]["low"] is None
    read = read_summary(path)
    assert isinstance(read, Agreement)
    assert math.isnan(read.correlations[0].estimate.low)


def test_other_files_and_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "preference-x.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="no summary of a comparison"):
        read_summary(path)
    path.write_text(json.dumps({"kind": "preference", "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        read_summary(path)
