import numpy as np
import pytest

from rewardzoo.trainers.pairs import make_pairs

NAN = np.nan


def rng(seed=0):
    return np.random.default_rng(seed)


def listed(pairs):
    return list(
        zip(
            pairs.prompt.tolist(),
            pairs.chosen.tolist(),
            pairs.rejected.tolist(),
            pairs.gap.tolist(),
            strict=True,
        )
    )


def test_best_is_paired_with_worst_of_its_prompt():
    pairs = make_pairs([[1, 5, 2, 0], [4, 3, 9, 8]], rng=rng())
    assert listed(pairs) == [(0, 1, 3, 5.0), (1, 2, 1, 6.0)]
    assert pairs.skipped == {}


def test_top_k_is_paired_with_bottom_k_from_the_outside_in():
    pairs = make_pairs([[1, 5, 2, 0, 3]], "topk_bottomk", rng=rng(), per_prompt=2)
    assert listed(pairs) == [(0, 1, 3, 5.0), (0, 4, 0, 2.0)]
    assert len(make_pairs([[1, 5, 2, 0, 3]], "topk_bottomk", rng=rng(), per_prompt=1)) == 1


def test_candidate_without_a_score_is_in_no_pair():
    pairs = make_pairs([[NAN, 5, 2, NAN]], rng=rng())
    assert listed(pairs) == [(0, 1, 2, 3.0)]
    pairs = make_pairs([[NAN, 1, 0, NAN]], "random_yes_no", rng=rng(), per_prompt=2)
    assert listed(pairs) == [(0, 1, 2, 1.0)]


def test_reasons_for_skipping_are_counted():
    scores = [
        [NAN, NAN, NAN, 1],  # failed
        [NAN, NAN, NAN, NAN],  # failed
        [2, 2, 2, 2],  # tie
        [2, 2, NAN, 2],  # tie
        [2, 2.01, 2, 2],  # std 0.005
        [2, 2.5, 2, 2],  # gap 0.5
        [0, 9, 0, 0],
    ]
    pairs = make_pairs(scores, rng=rng(), min_std=0.1, min_gap=1.0)
    assert pairs.prompt.tolist() == [6]
    assert pairs.skipped == {"failed": 2, "tie": 2, "low_std": 1, "small_gap": 1}


def test_gap_of_just_the_minimum_is_kept():
    assert len(make_pairs([[0, 1]], rng=rng(), min_gap=1.0)) == 1


def test_equal_scores_never_make_a_pair():
    pairs = make_pairs([[1, 1, 1, 0]] * 50, "topk_bottomk", rng=rng(), per_prompt=2)
    assert pairs.rejected.tolist() == [3] * 50
    assert len(pairs) == 50


def test_chance_not_order_decides_between_equal_scores():
    pairs = make_pairs([[1, 1, 1, 0, 0]] * 200, rng=rng())
    chosen, rejected = np.bincount(pairs.chosen, minlength=5), np.bincount(pairs.rejected, minlength=5)
    assert (chosen[:3] > 40).all()
    assert (rejected[3:] > 70).all()


def test_yes_and_no_are_drawn_from_all_such():
    pairs = make_pairs([[0.9, 0.5, 0.4, 0.1]] * 200, "random_yes_no", rng=rng())
    assert len(pairs) == 200
    seen = {(c, r) for _, c, r, _ in listed(pairs)}
    assert seen == {(0, 2), (0, 3), (1, 2), (1, 3)}


def test_yes_and_no_in_several_pairs_share_no_candidate():
    pairs = make_pairs([[0.9, 0.5, 0.8, 0.4, 0.1]], "random_yes_no", rng=rng(), per_prompt=2)
    assert len(pairs) == 2
    assert len({*pairs.chosen, *pairs.rejected}) == 4


def test_prompt_all_yes_or_all_no_is_skipped():
    pairs = make_pairs([[0.9, 0.8], [0.1, 0.2], [0.9, 0.2]], "random_yes_no", rng=rng())
    assert pairs.prompt.tolist() == [2]
    assert pairs.skipped == {"one_sided": 2}


@pytest.mark.parametrize("mode", ["best_worst", "topk_bottomk", "random_yes_no"])
def test_same_generator_gives_the_same_pairs(mode):
    scores = np.round(rng(7).random((100, 6)), 1)
    first, again, other = (make_pairs(scores, mode, rng=rng(seed)) for seed in (1, 1, 2))
    assert listed(first) == listed(again)
    assert listed(first) != listed(other)


def test_a_prompt_s_pairs_do_not_depend_on_what_the_others_scored():
    scores = np.round(rng(7).random((20, 6)), 1)
    changed = scores.copy()
    changed[:10] = NAN
    whole, rest = make_pairs(scores, rng=rng(1)), make_pairs(changed, rng=rng(1))
    assert listed(rest) == [row for row in listed(whole) if row[0] >= 10]


def test_no_prompts_give_no_pairs():
    pairs = make_pairs(np.empty((0, 4)), rng=rng())
    assert len(pairs) == 0
    assert pairs.chosen.dtype == np.int64


@pytest.mark.parametrize(
    ("scores", "settings", "message"),
    [
        ([1, 2], {}, r"\(prompts, candidates\), got \(2,\)"),
        ([[1, np.inf]], {}, "give NaN"),
        ([[1, 2]], {"mode": "best"}, "mode must be .* got 'best'"),
        ([[1, 2]], {"per_prompt": 2}, "best_worst gives 1 to 1 pairs of 2 candidates, got per_prompt=2"),
        ([[1, 2]], {"min_gap": -1}, "must be >= 0, got -1"),
    ],
)
def test_what_makes_no_sense_is_refused(scores, settings, message):
    with pytest.raises(ValueError, match=message):
        make_pairs(scores, rng=rng(), **settings)
