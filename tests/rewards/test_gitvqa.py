"""T2I-R1's GIT reward beyond parity: what metadata ask, what is refused, reading checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewardzoo.cli.parity import FIXTURES
from rewardzoo.errors import ItemError, WeightsError
from rewardzoo.rewards import RewardModel, Score, resolve
from rewardzoo.rewards._parity import load_case, read_case

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def reward() -> RewardModel:
    return load_case(read_case(FIXTURES / "gitvqa"))


def test_the_score_is_the_mean_of_the_answers_in_the_details(reward: RewardModel) -> None:
    (outcome,) = reward.score_items([IMAGE], ["unread"], [{"attr_nouns": ["a red cat", "a dog"]}])
    assert isinstance(outcome, Score)
    answers = outcome.details["questions"]
    assert list(answers) == ["a red cat", "a dog"]
    assert outcome.value == pytest.approx(sum(answers.values()) / 2, rel=1e-6)


def test_attributes_go_before_nouns(reward: RewardModel) -> None:
    both = {"attr_nouns": ["a red cat"], "nouns": ["cat"]}
    outcomes = reward.score_items([IMAGE] * 2, ["", ""], [both, {**both, "attr_nouns": None}])
    asked = [list(outcome.details["questions"]) for outcome in outcomes if isinstance(outcome, Score)]
    assert asked == [["a red cat"], ["cat"]]


def test_tasks_of_the_detector_score_zero_and_a_prompt_without_nouns_one(reward: RewardModel) -> None:
    metadata: list[dict[str, Any]] = [
        {"task_type": "spatial", "nouns": ["cat"]},
        {"task_type": "numeracy"},
        {"task_type": "object", "nouns": []},
    ]
    outcomes = reward.score_items([IMAGE] * 3, [""] * 3, metadata)
    assert outcomes == [Score(value, {"questions": {}}) for value in (0.0, 0.0, 1.0)]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, 'for example {"attr_nouns": ["a red car"'),
        ({"task_type": "color"}, "give what to ask for"),
        ({"attr_nouns": []}, '"attr_nouns"] is empty'),
        ({"nouns": "cat"}, "must be a list of texts, got 'cat'"),
        ({"nouns": ["cat"] * 17}, "has 17 phrases, at most 16"),
        ({"nouns": ["cat", ""]}, "blank phrase"),
        ({"nouns": ["cat"], "task_type": 3}, "must be a text, got 3"),
        ({"nouns": ["cat " * 300]}, "at most 256 can be read"),
    ],
)
def test_what_cannot_be_asked_fails_its_item_alone(
    reward: RewardModel, metadata: dict[str, Any], message: str
) -> None:
    bad, good = reward.score_items([IMAGE] * 2, ["", ""], [metadata, {"nouns": ["cat"]}])
    assert isinstance(bad, ItemError)
    assert message in str(bad)
    assert isinstance(good, Score)


def test_the_vision_pass_is_shared_by_the_questions_of_an_image(reward: RewardModel) -> None:
    metadata = [{"nouns": ["cat", "dog"]}, {"nouns": ["cat"]}, {"nouns": []}]
    inputs = reward.prepare([IMAGE] * 3, [""] * 3, metadata).inputs
    assert len(inputs["pixel_values"]) == 1
    assert inputs["slots"].tolist() == [[0, 1], [0, 2], [2, 2]]


def test_the_question_has_no_end_token_and_is_read_at_its_last_piece(reward: RewardModel) -> None:
    inputs = reward.prepare([IMAGE], [""], [{"nouns": ["cat", "a red cat"]}]).inputs
    ids = reward.tokenizer.get_vocab()  # type: ignore[attr-defined]
    expected = [[ids[word] for word in ("[CLS]", *words.split())] for words in ("cat ?", "a red cat ?")]
    assert inputs["last"].tolist() == [2, 4]
    assert expected == [
        row[: last + 1]
        for row, last in zip(inputs["input_ids"].tolist(), inputs["last"].tolist(), strict=True)
    ]


def test_a_checkpoint_that_lacks_a_weight_is_refused_where_upstream_would_score_at_random(
    tmp_path: Path,
) -> None:
    case = read_case(FIXTURES / "gitvqa")
    model_class, variant = resolve(case.reward)
    state = torch.load(case.files["checkpoint"], weights_only=True)
    del state["git.visual_projection.visual_projection.0.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="visual_projection"):
        model_class.load(
            replace(variant, config=case.config), {**case.files, "checkpoint": tmp_path / "pytorch_model.bin"}
        )
