from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from rewardzoo.clients.compare.best_of_n import best_of_n, expected_picks
from rewardzoo.clients.compare.groups import Group
from rewardzoo.clients.compare.judges import judge_by_files, judge_by_ratings
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.clients.compare.summaries import BestOfN, Curve, RewardInfo

from .conftest import MakeStore, keep

FEW = Bootstrap(200)
JUDGE = RewardInfo("judge")


def by_enumeration(scores: np.ndarray, judged: np.ndarray) -> list[float]:
    filled = np.where(np.isnan(scores), -np.inf, scores)
    means = []
    for n in range(1, len(scores) + 1):
        picked = []
        for subset in map(list, combinations(range(len(scores)), n)):
            best = [i for i in subset if filled[i] == filled[subset].max()]
            picked.append(judged[best].mean())
        means.append(float(np.mean(picked)))
    return means


@pytest.mark.parametrize("seed", range(6))
def test_the_expected_pick_is_the_mean_over_all_subsets_ties_and_failures_included(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, judged = rng.integers(0, 4, 7).astype(float), rng.random(7)
    if seed % 2:
        scores[:2] = np.nan
    assert expected_picks(scores, judged) == pytest.approx(by_enumeration(scores, judged))


def test_large_pools_stay_exact() -> None:
    judged = np.arange(2000.0)
    picks = expected_picks(judged, judged)
    # The expected maximum of n out of 0..N-1 is n (N + 1) / (n + 1) - 1.
    n = np.arange(1, 2001)
    np.testing.assert_allclose(picks, n * 2001 / (n + 1) - 1, rtol=1e-9)


def curve(summary: BestOfN, selector: str, split: str = "all") -> Curve:
    (one,) = [c for c in summary.curves if (c.selector, c.split) == (selector, split)]
    return one


def test_curves_run_from_random_to_the_reward_and_gaps_from_the_oracle(make_store: MakeStore) -> None:
    groups = [Group(f"{p}", "p", tuple(f"{p}-{i}" for i in range(4))) for p in range(30)]
    store = make_store(groups, "pool")
    rng = np.random.default_rng(0)
    judged = rng.random(120)
    keep(store, right=judged * 7, wrong=-judged, blind=np.zeros(120))
    summary = best_of_n(store, ["right", "wrong", "blind"], JUDGE, judged, FEW, {})
    top, mean = judged.reshape(30, 4).max(1).mean(), judged.mean()
    assert curve(summary, "oracle").value == pytest.approx(curve(summary, "right").value)
    assert curve(summary, "right").value[-1] == pytest.approx(top)
    assert curve(summary, "random").value == pytest.approx([mean] * 4)
    assert curve(summary, "blind").value == pytest.approx([mean] * 4)
    assert curve(summary, "wrong").value[-1] == pytest.approx(judged.reshape(30, 4).min(1).mean())
    assert curve(summary, "right").n == (1, 2, 3, 4)
    assert all(
        low <= value <= high
        for low, value, high in zip(
            curve(summary, "right").low,
            curve(summary, "right").value,
            curve(summary, "right").high,
            strict=True,
        )
    )
    gaps = {gap.reward: gap for gap in summary.gaps}
    assert gaps["right"].share.value == pytest.approx(1)
    assert gaps["blind"].share.value == pytest.approx(0)
    assert gaps["wrong"].share.value < 0
    assert gaps["right"].oracle_gap.value == pytest.approx(0)
    assert gaps["blind"].oracle_gap.value == pytest.approx(top - mean)
    assert {(c.a, c.b): c.p_holm < 0.05 for c in summary.contrasts} == {
        ("right", "wrong"): True,
        ("right", "blind"): True,
        ("wrong", "blind"): True,
    }


def test_splits_have_their_own_curves_up_to_their_smallest_pool(make_store: MakeStore) -> None:
    sizes = {"in_domain": 3, "out_of_domain": 2}
    groups = [
        Group(f"{split}{p}", "p", tuple(f"{split}{p}{i}" for i in range(size)), split=split)
        for split, size in sizes.items()
        for p in range(2)
    ]
    store = make_store([*groups, Group("single", "p", ("alone",), split="in_domain")], "pool")
    judged = np.arange(11.0)
    keep(store, r=judged)
    summary = best_of_n(store, ["r"], JUDGE, judged, FEW, {})
    assert {c.split: (c.prompts, c.n) for c in summary.curves if c.selector == "r"} == {
        "all": (4, (1, 2)),
        "in_domain": (2, (1, 2, 3)),
        "out_of_domain": (2, (1, 2)),
    }


def test_images_without_a_judgement_are_left_out(make_store: MakeStore) -> None:
    store = make_store([Group("0", "p", ("a", "b", "c"))], "pool")
    keep(store, r=[1, 2, 3])
    summary = best_of_n(store, ["r"], JUDGE, np.array([1.0, 0.0, np.nan]), FEW, {})
    assert curve(summary, "r").value == pytest.approx([0.5, 0.0])
    with pytest.raises(ValueError, match="no prompt has two images that judge judged"):
        best_of_n(store, ["r"], JUDGE, np.full(3, np.nan), FEW, {})


def lines(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_genevals_results_judge_by_folder_and_sample(tmp_path: Path, make_store: MakeStore) -> None:
    images = tuple(f"00001/samples/{i:04}.png" for i in range(3))
    store = make_store([Group("00001", "two cats", images)], "pool")
    results = lines(
        tmp_path / "results.jsonl",
        *(
            {"filename": f"/data/run7/{image}", "tag": "counting", "prompt": "two cats", "correct": right}
            for image, right in zip(images[:2], (True, False), strict=True)
        ),
    )
    judge, scores = judge_by_files(store, {"": results})
    np.testing.assert_array_equal(scores, [1, 0, np.nan])
    assert (judge.name, judge.failed) == ("results.jsonl", 1)


def test_t2i_compbenchs_results_judge_by_the_last_six_digits(tmp_path: Path, make_store: MakeStore) -> None:
    images = ("samples/a red cup_000000.png", "samples/a red cup_000011.png")
    store = make_store([Group("a red cup", "a red cup", images, split="color")], "pool")
    results = tmp_path / "vqa_result.json"
    results.write_text(json.dumps([{"question_id": i, "answer": f"0.{i:02}"} for i in range(12)]))
    _, scores = judge_by_files(store, {"color": results})
    assert scores.tolist() == [0.0, 0.11]
    with pytest.raises(ValueError, match="split 'shape', the pool has color"):
        judge_by_files(store, {"shape": results})


def test_any_file_of_image_and_score_judges(tmp_path: Path, make_store: MakeStore) -> None:
    store = make_store([Group("0", "p", ("in/a.png", "in/b.png"))], "pool")
    _, scores = judge_by_files(store, {"": lines(tmp_path / "s.jsonl", {"image": "b.png", "score": 0.5})})
    np.testing.assert_array_equal(scores, [np.nan, 0.5])
    with pytest.raises(ValueError, match=r"columns a: results have filename and correct"):
        judge_by_files(store, {"": lines(tmp_path / "x.jsonl", {"a": 1})})
    with pytest.raises(ValueError, match=r"no result is of an image of the pool; its first is in/a\.png"):
        judge_by_files(store, {"": lines(tmp_path / "y.jsonl", {"image": "c.png", "score": 1})})


def test_ratings_of_the_pool_judge(make_store: MakeStore) -> None:
    store = make_store([Group("0", "p", ("a", "b"), ratings=(0.25, 0.5))], "pool")
    assert judge_by_ratings(store)[1].tolist() == [0.25, 0.5]
    with pytest.raises(ValueError, match="has no ratings: name a --judge or a --judge-file"):
        judge_by_ratings(make_store([Group("0", "p", ("a", "b"))], "pool", name="unrated"))
