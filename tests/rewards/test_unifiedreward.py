"""What parity cannot show of UnifiedReward: reading answers, refusals, recipes apart, its limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from PIL import Image

from rewardzoo.cli.parity import FIXTURES
from rewardzoo.errors import ItemError, WeightsError
from rewardzoo.rewards import RewardModel, Score
from rewardzoo.rewards._parity import load_case, read_case
from rewardzoo.rewards.unifiedreward import FORMS, UnifiedReward, read_score

POINT, ACS, FLOW = (FORMS[f"unifiedreward/{name}"] for name in ("point", "acs", "flow-grpo"))
THREE = "Alignment Score (1-5): 2.5\nCoherence Score (1-5): 4\nStyle Score (1-5): 1.0\n"


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return load_case(read_case(FIXTURES / "unifiedreward-point"))


@pytest.fixture
def picture() -> Iterator[Image.Image]:
    with Image.open(FIXTURES.parent / "inputs" / "rgba.png") as image:
        yield image.convert("RGB")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("cat (animal): 1\nFinal Score: 3.5", 3.5),
        ("Final Score: 4.", 4.0),
        ("Final Score:\n2", 2.0),
        ("Final Score: 5.0 out of 5", 5.0),
        ("Final Score: 1.25\nFinal Score: 4", 1.25),
    ],
)
def test_the_first_final_score_of_an_answer_is_read(text: str, score: float) -> None:
    assert read_score(text, POINT) == Score(score, {"text": text})
    assert read_score(text, FLOW) == Score(score / 5, {"text": text})


@pytest.mark.parametrize(
    "text",
    ["", "A fine picture.", "Final Score: ten", "Final Score: 0.5", "Final Score: 10", "Final Score: 5.5"],
)
def test_an_answer_without_a_score_in_range_is_an_error_that_quotes_its_end(text: str) -> None:
    outcome = read_score("x" * 500 + text, POINT)
    assert isinstance(outcome, ItemError)
    assert "Final Score" in str(outcome)
    assert text in str(outcome)
    assert len(str(outcome)) < 300


def test_the_three_scores_are_kept_and_their_mean_is_the_score() -> None:
    parts = {"alignment": 2.5, "coherence": 4.0, "style": 1.0}
    assert read_score(THREE, ACS) == Score(2.5, {**parts, "text": THREE})


@pytest.mark.parametrize("axis", ["Alignment", "Coherence", "Style"])
def test_a_missing_axis_is_an_error_that_names_it_and_no_default(axis: str) -> None:
    text = "\n".join(line for line in THREE.splitlines() if not line.startswith(axis))
    outcome = read_score(text, ACS)
    assert isinstance(outcome, ItemError)
    assert f"no {axis} Score" in str(outcome)


def test_an_axis_above_five_is_an_error() -> None:
    assert isinstance(read_score(THREE.replace("4", "5.5"), ACS), ItemError)
    assert isinstance(read_score(THREE.replace("4", "40"), ACS), ItemError)


def test_forward_gives_what_evaluate_gives_and_nan_for_a_refusal(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch, picture: Image.Image
) -> None:
    batch = model.prepare([picture] * 3, ["a cat", "a dog", "a red circle"])
    evaluated = [o.value if isinstance(o, Score) else math.nan for o in model.evaluate(batch)]
    assert model.forward(batch.inputs).tolist() == pytest.approx(evaluated, nan_ok=True)
    answers = ["Final Score: 2", "I would rather not.", "Final Score: 3"]
    monkeypatch.setattr(model, "answers", lambda inputs: answers)
    assert model.forward(batch.inputs).tolist() == pytest.approx([2.0, math.nan, 3.0], nan_ok=True)
    outcomes = model.run(batch)
    assert [isinstance(outcome, ItemError) for outcome in outcomes] == [False, True, False]
    assert "I would rather not." in str(outcomes[1])


def test_the_penalty_on_repetition_is_that_of_the_folder(model: RewardModel) -> None:
    assert isinstance(model, UnifiedReward)
    assert model.repetition_penalty == 1.05


def test_llavas_penalty_is_the_folders_and_spares_the_dialogues_tokens(picture: Image.Image) -> None:
    llava = load_case(read_case(FIXTURES / "unifiedreward-point-llava"))
    assert isinstance(llava, UnifiedReward)
    assert llava.repetition_penalty == 1.05
    batch = llava.prepare([picture], ["red blue cat circle square image a yes"])

    def answer(tokens: int, penalty: float) -> str:
        config = {**llava.variant.config, "max_new_tokens": tokens}
        asked = UnifiedReward(replace(llava.variant, config=config), llava.net, repetition_penalty=penalty)
        return asked.answers(batch.inputs)[0]

    said = answer(1, 1.0)
    assert said.strip()
    assert said == answer(1, 100.0)


def test_the_prompt_stands_in_the_question_as_it_is(model: RewardModel) -> None:
    prompt = '{0} [x] {prompt} "y"\n'
    asked = model.prepare_prompt(prompt, {})
    assert f"Text Caption: [{prompt}]<|im_end|>\n<|im_start|>assistant\n" in asked
    with pytest.raises(ItemError, match="image_pad"):
        model.prepare_prompt("<|image_pad|>", {})


def test_an_answer_is_cut_where_the_configuration_says(model: RewardModel, picture: Image.Image) -> None:
    assert isinstance(model, UnifiedReward)
    batch = model.prepare([picture], ["a cat"])
    whole = model.answers(batch.inputs)[0]
    short = UnifiedReward(
        replace(model.variant, config={"max_new_tokens": 1}), model.net, repetition_penalty=1.0
    )
    (cut,) = short.answers(batch.inputs)
    assert len(cut) < len(whole)


def test_recipes_differ_in_what_they_show_the_model(model: RewardModel, picture: Image.Image) -> None:
    def shown(recipe: str) -> torch.Tensor:
        variant = replace(model.variant, recipe=f"unifiedreward/{recipe}")
        pixels = UnifiedReward(variant, model.net, repetition_penalty=1.0).prepare_image(picture)
        return pixels["pixel_values"]

    assert torch.equal(shown("point"), shown("acs"))
    assert shown("acs").shape == shown("acs-jpeg").shape
    assert not torch.equal(shown("acs"), shown("acs-jpeg"))
    assert len(shown("flow-grpo")) == (504 // 14) ** 2  # 512 x 512, to multiples of 28


def test_thin_images_keep_their_length_and_very_thin_ones_are_refused(model: RewardModel) -> None:
    assert model.prepare_image(Image.new("RGB", (300, 5)))["image_grid_thw"].tolist() == [1, 2, 22]
    (outcome,) = model.score_items([Image.new("RGB", (3, 1000))], ["a thread"])
    assert isinstance(outcome, ItemError)
    assert "aspect ratio" in str(outcome)


def test_a_folder_that_is_no_model_is_refused(tmp_path: object) -> None:
    with pytest.raises(WeightsError):
        UnifiedReward.load(UnifiedReward.spec.variants[0], {"checkpoint": tmp_path})  # type: ignore[dict-item]
