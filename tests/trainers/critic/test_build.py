from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from rewardzoo.trainers.critic.build import Judge, build_split, statistics, without
from rewardzoo.trainers.critic.config import DataSection, JudgeSection
from rewardzoo.trainers.critic.records import balanced, pairs_of, read
from rewardzoo.trainers.policies.partial import decode_partial
from rewardzoo.trainers.prompts import Prompt

from ..tiny_policy import TinyPolicy  # noqa: TID252

PROMPTS = [Prompt(f"a red circle and {n} blue squares") for n in ("two", "three")] + [
    Prompt("a green cross"),
    Prompt("two red circles"),
    Prompt("a blue triangle"),
]


def settings(folder: Path, **more: object) -> DataSection:
    return DataSection.model_validate(
        {
            "folder": folder,
            "images_per_prompt": 4,
            "prompts_per_part": 2,
            "steps": [0.25, 0.5625, 0.75],
            "reflections": True,
            **more,
        }
    )


class Half:
    """A judge that finds half of all pictures right, and cannot judge one in nine."""

    name = "half"

    def score_items(self, images, prompts, metadata):
        from rewardzoo.errors import ItemError
        from rewardzoo.trainers.lab.exact_reward import Truth

        sums = [zlib.crc32(image.tobytes()) for image in images]
        return [
            ItemError("too blue")
            if s % 9 == 0
            else Truth(float(s % 2 == 0), {"reason": "odd", "category": "sum"})
            for s in sums
        ]

    def provenance(self):
        return {}


@pytest.fixture
def judge() -> Judge:
    from rewardzoo import LocalRewards

    return Judge(LocalRewards.of([Half()]), "half", 0.5)


def build(folder: Path, judge: Judge, **more: object) -> Path:
    build_split(folder / "train", TinyPolicy(), PROMPTS, judge, data=settings(folder, **more), seed=3)
    return folder


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("train/part-*.parquet")}


def test_each_picture_is_asked_about_when_finished_and_at_each_step_that_is_clear_or_is_not(tmp_path, judge):
    rows = list(read(build(tmp_path, judge), "train"))
    counts = Counter((row["stage"], row["step"]) for row in rows)
    n = counts["selection", 16]
    assert 0 < n < 20  # one in nine could not be judged, and is left out rather than called wrong
    assert counts == {
        ("selection", 16): n,
        ("reflection", 16): n,
        ("clarity", 4): n,
        ("clarity", 12): n,
        ("potential", 12): n,
    }


def test_unfinished_pictures_have_the_label_of_what_they_become_and_clarity_that_of_their_step(
    tmp_path, judge
):
    rows = list(read(build(tmp_path, judge), "train"))
    final = {row["picture"]: row["label"] for row in rows if row["stage"] == "selection"}
    assert set(final.values()) == {0.0, 1.0}
    for row in rows:
        wanted = float(row["step"] == 12) if row["stage"] == "clarity" else final[row["picture"]]
        assert row["label"] == wanted
        assert row["reason"] == "odd"


def test_unfinished_pictures_can_be_those_of_some_of_a_prompts_pictures(tmp_path, judge):
    counts = Counter(
        (row["step"], row["picture"].split("-")[-1])
        for row in read(build(tmp_path, judge, unfinished_per_prompt=2), "train")
    )
    assert {copy for step, copy in counts if step == 16} == {"0", "1", "2", "3"}
    assert {copy for step, copy in counts if step == 12} == {"0", "1"}


def test_a_build_that_was_killed_goes_on_to_the_same_data(tmp_path, judge):
    whole = digest(build(tmp_path / "whole", judge))
    cut = build(tmp_path / "cut", judge)
    (cut / "train" / "part-00001.parquet").unlink()
    kept = (cut / "train" / "part-00000.parquet").stat().st_mtime_ns
    assert digest(build(tmp_path / "cut", judge)) == whole
    assert (cut / "train" / "part-00000.parquet").stat().st_mtime_ns == kept


def test_a_folder_is_not_gone_on_with_under_other_settings(tmp_path, judge):
    build(tmp_path, judge)
    with pytest.raises(ValueError, match=r"other settings \(images_per_prompt\)"):
        build(tmp_path, judge, images_per_prompt=2)


def test_prompts_of_the_evaluation_and_repetitions_are_left_out():
    kept = without([Prompt("A  cat"), Prompt("a dog"), Prompt("a dog"), Prompt("a cow")], [Prompt("a cat")])
    assert [prompt.text for prompt in kept] == ["a dog", "a cow"]


def test_balanced_rows_have_as_many_yes_as_no_in_each_group():
    labels = [1, 1, 1, 0, 0, 1, 1, 1]
    groups = ["a"] * 5 + ["b"] * 3
    kept = balanced(labels, groups, np.random.default_rng(0))
    assert [labels[i] for i in kept].count(1) == [labels[i] for i in kept].count(0) == 3
    assert set(kept.tolist()) == {0, 1, 2, 3, 4}  # all of b is yes: nothing to tell apart


def test_rows_of_the_rarer_answer_are_shown_twice_at_most_and_the_others_once():
    labels = [1.0] * 9 + [0.0] * 2
    kept = balanced(labels, ["a"] * 11, np.random.default_rng(0)).tolist()
    assert [kept.count(i) for i in (9, 10)] == [2, 2]
    assert len(kept) == 8 == len(set(kept)) + 2


def test_statistics_count_rows_and_yes_by_stage_and_step(tmp_path, judge):
    found = statistics(list(read(build(tmp_path, judge), "train")))
    assert found["clarity at 12/16"]["yes"] == 1.0
    assert 0 < found["selection at 16/16"]["yes"] < 1


def test_preferences_are_a_right_and_a_wrong_picture_of_one_prompt(tmp_path, judge):
    rows = list(read(build(tmp_path, judge), "train"))
    found = list(pairs_of(rows))
    assert found
    for prompt, chosen, rejected in found:
        assert rows[chosen]["prompt"] == rows[rejected]["prompt"] == prompt
        assert (rows[chosen]["label"], rows[rejected]["label"]) == (1.0, 0.0)


def test_an_unfinished_picture_shows_what_is_there_and_grey_below():
    policy = TinyPolicy()
    tokens = torch.arange(16)[None] % 6
    whole, part = policy.decode(tokens), decode_partial(policy, tokens, 6)
    assert (part[0, :8] == whole[0, :8]).all()
    assert (part[0, 8:16, :16] == whole[0, 8:16, :16]).all()
    assert (part[0, 8:16, 16:] == 128).all()
    assert (part[0, 16:] == 128).all()
    assert (decode_partial(policy, tokens, 16) == whole).all()


@pytest.mark.parametrize("count", [0, 17])
def test_a_count_of_tokens_that_cannot_be_is_refused(count: int):
    with pytest.raises(ValueError, match=r"must be in \[1, 16\]"):
        decode_partial(TinyPolicy(), torch.zeros(1, 16, dtype=torch.long), count)


def test_the_labs_judge_says_in_words_what_is_wrong():
    from rewardzoo.trainers.lab import parse_prompt, render

    judge = Judge.open(JudgeSection(reward="lab:exact"))
    image = render(parse_prompt("two blue squares"), np.random.default_rng(0))
    labels, notes = judge.label(
        np.stack([image, image]), [Prompt("two blue squares"), Prompt("two red squares")]
    )
    assert labels.tolist() == [1.0, 0.0]
    assert notes[0]["reason"] == ""
    assert "red" in notes[1]["reason"]
