"""Runs on disk, and what is made of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rewardzoo.clients.compare.outcomes import Outcomes, mean_over_seeds, summarize_runs
from rewardzoo.clients.compare.runs import Run, read_csv, read_run, read_runs
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.clients.compare.summaries import (
    BestOfN,
    Curve,
    DataInfo,
    Estimate,
    RewardInfo,
    read_summary,
    write_summary,
)
from rewardzoo.clients.compare.transfer import transfer_of

CONFIG = """
policy: {name_or_path: mini}
rewards:
  weights: {"hpsv2:mini": 1.0}
  held_out: ["lab:exact"]
run: {out: x, seed: 7}
grpo: {group_size: 4}
"""


def write_run(folder: Path, rows: list[dict[str, object]], config: str = CONFIG) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rows(own: float, judge: float) -> list[dict[str, object]]:
    """A run of 20 steps, evaluated at its begin and end; its own reward and the judge gain so much."""
    found: list[dict[str, object]] = []
    for step in range(21):
        row: dict[str, object] = {
            "step": step,
            "reward": 1.0 + own * step / 20,
            "reward_std": 2.0,
            "kl": None,
        }
        if step in (0, 20):
            row |= {
                "eval/in_domain/hpsv2:mini": 0.2 + own * step / 20,
                "eval/in_domain/lab:exact": 0.5 + judge * step / 20,
            }
            row |= {"eval/out_of_domain/lab:exact": 0.4, "eval/out_of_domain/hpsv2:mini": 0.2}
        found.append(row)
    return found


def test_a_run_is_read_with_what_it_was_trained_on(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", rows(0.1, 0.2)))
    assert (run.name, run.algorithm, run.reward, run.held_out, run.seed) == (
        "a",
        "grpo",
        "hpsv2:mini",
        ("lab:exact",),
        7,
    )
    steps, values = run.series("eval/in_domain/lab:exact")
    assert steps.tolist() == [0, 20]
    assert values.tolist() == pytest.approx([0.5, 0.7])
    assert run.series("nothing")[0].size == 0


def test_runs_are_found_below_a_folder_and_named_by_where_they_are(tmp_path: Path) -> None:
    for name in ("grpo/hps/0", "grpo/hps/1", "dpo/hps/0"):
        write_run(tmp_path / "runs" / name, rows(0.1, 0.2))
    assert [run.name for run in read_runs([tmp_path / "runs"])] == ["dpo/hps/0", "grpo/hps/0", "grpo/hps/1"]
    with pytest.raises(ValueError, match="no run in"):
        read_runs([tmp_path / "elsewhere"])


def test_a_run_that_was_killed_in_a_line_is_read_up_to_there(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", rows(0.1, 0.2))
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    assert read_run(folder).steps[-1] == 19
    path.write_text("{\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1"):
        read_run(folder)


def test_what_the_scores_of_runs_rest_on_is_kept_and_told_apart_where_they_differ(tmp_path: Path) -> None:
    for name, weights in (("a", "1f"), ("b", "2f")):
        folder = write_run(tmp_path / name, rows(0.1, 0.2))
        said = {"hpsv2:mini": {"recipe": "r", "weights_sha256": weights}, "lab:exact": {"recipe": "exact"}}
        (folder / "provenance.json").write_text(json.dumps(said))
    found = summarize_runs(read_runs([tmp_path]), name="x", bootstrap=Bootstrap(200))
    assert {scorer.name: scorer.provenance for scorer in found.scorers} == {
        "hpsv2:mini": {"recipe": "r", "weights_sha256": ["1f", "2f"]},
        "lab:exact": {"recipe": "exact"},
    }


def test_a_mixture_is_named_by_its_weights(tmp_path: Path) -> None:
    config = CONFIG.replace('{"hpsv2:mini": 1.0}', '{"a": 1, "b": 0.5}')
    assert read_run(write_run(tmp_path / "a", rows(0, 0), config)).reward == "a + 0.5 b"


def test_a_config_without_rewards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config.yaml does not say what was trained on"):
        read_run(write_run(tmp_path / "a", rows(0, 0), "policy: {}\n"))


def test_a_csv_of_another_trainer_is_read_by_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "wandb.csv"
    path.write_text("run_id,global_step,train/r,val/geneval\na,0,1,0.4\na,10,2,\nb,0,1,0.4\na,20,3,0.5\n")
    columns = {
        "run": "run_id",
        "step": "global_step",
        "reward": "train/r",
        "eval/out_of_domain/geneval": "val/geneval",
    }
    found = read_csv(path, columns, {"algorithm": "GRPO", "trained_on": "hps", "seed": "3"})
    assert [(run.name, run.algorithm, run.reward, run.seed) for run in found] == [
        ("a", "grpo", "hps", 3),
        ("b", "grpo", "hps", 3),
    ]
    assert found[0].series("eval/out_of_domain/geneval")[1].tolist() == [0.4, 0.5]
    with pytest.raises(ValueError, match="no column 'val/x'"):
        read_csv(path, {"step": "global_step", "eval/a/b": "val/x"})
    path.write_text("global_step,train/r\n0,high\n")
    with pytest.raises(ValueError, match="line 2"):
        read_csv(path, {"step": "global_step", "reward": "train/r"})


def run_of(name: str, algorithm: str, reward: str, own: float, judge: float, seed: int = 0) -> Run:
    steps = np.array([0.0, 50.0, 100.0])
    metrics = {"reward": 1 + own * steps / 100, "reward_std": np.full(3, 2.0)}
    for split, share in (("in_domain", 1.0), ("out_of_domain", 0.5)):
        metrics[f"eval/{split}/exact"] = 0.5 + share * judge * steps / 100
        metrics[f"eval/{split}/{reward}"] = 0.2 + own * steps / 100
    return Run(name, algorithm, {reward: 1.0}, ("exact",), seed, name, steps, metrics)


def summary_of(runs: list[Run], **settings: object) -> Outcomes:
    return summarize_runs(
        runs, name="x", spread={"exact": 0.25, "a": 0.1}, bootstrap=Bootstrap(200), **settings
    )  # type: ignore[arg-type]


def test_gains_are_in_units_of_the_bases_spread_and_the_hack_gap_is_their_difference() -> None:
    found = summary_of([run_of("x", "grpo", "a", own=0.3, judge=0.1)])
    cells = {cell.split: cell for cell in found.cells}
    assert set(cells) == {"in_domain", "out_of_domain"}
    assert cells["in_domain"].base.value == pytest.approx(0.5)
    assert cells["in_domain"].gain.value == pytest.approx(0.1 / 0.25)
    assert cells["in_domain"].own_gain.value == pytest.approx(0.3 / 0.1)
    assert cells["in_domain"].hack_gap.value == pytest.approx(3 - 0.4)
    assert cells["out_of_domain"].gain.value == pytest.approx(0.05 / 0.25)
    assert math.isnan(cells["in_domain"].gain.low), "one seed has no interval"


def test_without_a_spread_a_gain_is_no_number_but_the_scores_are_there() -> None:
    found = summarize_runs([run_of("x", "grpo", "a", 0.3, 0.1)], name="x", bootstrap=Bootstrap(200))
    (cell,) = (cell for cell in found.cells if cell.split == "in_domain")
    assert math.isnan(cell.gain.value)
    assert cell.final.value == pytest.approx(0.6)


def test_an_own_reward_that_no_evaluation_has_is_taken_from_training() -> None:
    run = run_of("x", "grpo", "a", own=1.0, judge=0.1)
    kept = {name: values for name, values in run.metrics.items() if not name.endswith("/a")}
    found = summary_of([Run("x", "grpo", {"a": 1.0}, ("exact",), 0, "x", run.steps, kept)])
    assert found.cells[0].own_gain.value == pytest.approx(1.0 / 2.0)


def test_seeds_are_averaged_with_students_t() -> None:
    runs = [run_of(f"x{s}", "dpo", "a", 0.3, gain, s) for s, gain in enumerate((0.1, 0.2, 0.3))]
    (cell,) = (cell for cell in summary_of(runs).cells if cell.split == "in_domain")
    assert (cell.seeds, cell.final.value) == (3, pytest.approx(0.7))
    half = 4.302653 * 0.1 / math.sqrt(3)  # the 97.5% quantile of t with two degrees of freedom
    assert cell.final.high - cell.final.value == pytest.approx(half, rel=1e-5)
    assert mean_over_seeds([1.0]).value == 1


def pool_of(values: dict[str, float]) -> BestOfN:
    curves = tuple(
        Curve(name, split, 10, (1, 2, 4, 8), (0.5, 0.5, value, 0.9), (0.4,) * 4, (0.6,) * 4)
        for name, value in values.items()
        for split in ("in_domain", "out_of_domain")
    )
    data = DataInfo("pool", "pool", "", "", 10, 80, 0, "f")
    rewards = tuple(RewardInfo(name) for name in values)
    return BestOfN(data, rewards, 0.95, 200, 0, {}, RewardInfo("exact"), curves, (), ())


def test_best_of_4_is_set_against_what_training_came_to() -> None:
    names = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    runs = [run_of(name, "grpo", name, 0.3, gain) for name, gain in names.items()]
    found = summary_of(runs, pools=[pool_of({n: 0.5 + v for n, v in names.items()} | {"oracle": 1.0})])
    assert [(t.algorithm, t.split, t.n) for t in found.transfers] == [
        ("grpo", s, 4) for s in ("in_domain", "out_of_domain")
    ]
    transfer = found.transfers[0]
    assert transfer.spearman.value == pytest.approx(1)
    assert transfer.p == pytest.approx(2 / 24), "two of the 24 orders of four rewards correlate so much"
    assert transfer.rewards == tuple(names)
    turned = summary_of(runs, pools=[pool_of({n: 0.9 - v for n, v in names.items()})])
    assert turned.transfers[0].spearman.value == pytest.approx(-1)
    others = summary_of(runs, pools=[pool_of(names)], pool_judge="rating")
    assert others.transfers == ()


def test_the_correlations_interval_covers_the_points_own_uncertainty() -> None:
    sure = {name: Estimate(i, i, i) for i, name in enumerate("abcde")}
    unsure = {name: Estimate(i, i - 3, i + 3) for i, name in enumerate("abcde")}
    pool = pool_of({name: 0.5 + i / 10 for i, name in enumerate("abcde")})
    flat = BestOfN(
        **{
            **vars(pool),
            "curves": tuple(
                Curve(c.selector, c.split, 10, c.n, c.value, c.value, c.value) for c in pool.curves
            ),
        }
    )
    wide, narrow = (transfer_of(flat, "grpo", "in_domain", t, Bootstrap(400)) for t in (unsure, sure))
    assert wide is not None
    assert narrow is not None
    assert wide.spearman.low < narrow.spearman.low
    assert transfer_of(flat, "grpo", "in_domain", {"a": sure["a"], "b": sure["b"]}, Bootstrap(400)) is None


def test_a_hacked_run_has_its_alarm_and_a_sound_one_has_none() -> None:
    steps = np.arange(0, 300, 10.0)
    rng = np.random.default_rng(0)
    hacked = np.where(steps < 80, steps / 80, 1 - (steps - 80) / 100) + rng.normal(0, 0.05, len(steps))
    runs = []
    for name, curve in (("hacked", hacked), ("sound", steps / 100)):
        metrics = {"reward": steps / 50 + rng.normal(0, 0.05, len(steps)), "eval/in_domain/exact": curve}
        runs.append(Run(name, "grpo", {"a": 1.0}, ("exact",), 0, name, steps, metrics))
    found = {run.name: run.alarms for run in summary_of(runs).runs}
    assert [alarm.judge for alarm in found["hacked"]] == ["eval/in_domain/exact"]
    assert found["hacked"][0].peak_step == pytest.approx(80, abs=20)
    assert found["sound"] == ()


def test_the_summary_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    found = summary_of([run_of("x", "grpo", "a", 0.3, 0.1), run_of("y", "grpo", "a", 0.3, 0.2, 1)])
    again = read_summary(write_summary(tmp_path, found))
    assert json.dumps(vars(again), default=str) == json.dumps(vars(found), default=str)


def test_a_summary_that_another_version_wrote_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write_summary(tmp_path, summary_of([run_of("x", "grpo", "a", 0.3, 0.1)]))
    path.write_text(path.read_text().replace('"judge": "exact"', '"chief": "exact"', 1))
    with pytest.raises(ValueError, match="make it again"):
        read_summary(path)


@pytest.mark.parametrize(
    ("runs", "settings", "message"),
    [
        ([], {}, "got none"),
        ([run_of("x", "grpo", "a", 0, 0)] * 2, {}, "different names"),
        ([run_of("x", "grpo", "a", 0, 0)], {"judge": "geneval"}, "judges there are: exact"),
    ],
)
def test_what_cannot_be_summarised_is_refused(
    runs: list[Run], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        summary_of(runs, **settings)
