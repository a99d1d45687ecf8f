"""BLIP-VQA beyond parity: where phrases come from, what is refused, rounding, reading checkpoints."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rewardzoo.cli.parity import FIXTURES
from rewardzoo.errors import ItemError, WeightsError
from rewardzoo.rewards import RewardModel, Score, _nouns, load, resolve
from rewardzoo.rewards._parity import load_case, read_case

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
PHRASES = {"noun_phrases": ["a red cat", "a blue dog"]}


@pytest.fixture(scope="module")
def exact() -> RewardModel:
    return load_case(read_case(FIXTURES / "blipvqa"))


@pytest.fixture(scope="module")
def rounded() -> RewardModel:
    return load_case(read_case(FIXTURES / "blipvqa-rounded"))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Parsers and phrases of other tests are not remembered."""
    yield
    _nouns._parser.cache_clear()
    _nouns.noun_phrases.cache_clear()


def install_spacy(monkeypatch: pytest.MonkeyPatch, *found: str) -> list[str]:
    """Put a spaCy in place that finds these chunks; the list returned gets what was parsed."""
    parsed: list[str] = []

    def parse(prompt: str) -> Any:
        parsed.append(prompt)
        return SimpleNamespace(noun_chunks=[SimpleNamespace(text=text) for text in found])

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: parse))  # type: ignore[arg-type]
    return parsed


def questions(reward: RewardModel, prompt: str, metadata: dict[str, Any]) -> dict[str, float]:
    (outcome,) = reward.score_items([IMAGE], [prompt], [metadata])
    assert isinstance(outcome, Score), outcome
    return dict(outcome.details["questions"])


def test_details_have_the_answer_to_each_phrase_and_the_score_is_their_product(exact: RewardModel) -> None:
    (outcome,) = exact.score_items([IMAGE], ["unread"], [PHRASES])
    assert isinstance(outcome, Score)
    answers = outcome.details["questions"]
    assert list(answers) == PHRASES["noun_phrases"]
    assert outcome.value == pytest.approx(math.prod(answers.values()), rel=1e-6)
    assert 0 < outcome.value < 1


def test_phrases_in_the_metadata_are_asked_and_the_prompt_is_not_parsed(
    exact: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = install_spacy(monkeypatch, "a horse")
    assert list(questions(exact, "a horse", {"noun_phrases": ["the left"]})) == ["the left"]
    assert not parsed


def test_without_them_spacy_finds_at_most_eight_and_not_the_places(
    exact: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ["the left", "a cat", "top", *(f"thing {i}" for i in range(9))]
    parsed = install_spacy(monkeypatch, *found)
    asked = questions(exact, "a prompt", {})
    assert list(asked) == ["a cat", *(f"thing {i}" for i in range(7))]
    questions(exact, "a prompt", {"noun_phrases": None})
    assert parsed == ["a prompt"]  # an equal prompt is parsed once


def test_without_spacy_and_phrases_the_error_says_how_to_have_either(
    exact: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    outcomes = exact.score_items([IMAGE] * 2, ["a cat", "a dog"], [{}, PHRASES])
    assert isinstance(outcomes[0], ItemError)
    message = str(outcomes[0])
    assert 'metadata={"noun_phrases"' in message
    assert "pip install 'rewardzoo[nouns]' && python -m spacy download en_core_web_sm" in message
    assert isinstance(outcomes[1], Score)


def test_a_missing_spacy_model_is_an_error_that_says_how_to_get_it(
    exact: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Any:
        raise OSError(f"[E050] Can't find model '{name}'")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))  # type: ignore[arg-type]
    (outcome,) = exact.score_items([IMAGE], ["a cat"])
    assert "python -m spacy download en_core_web_sm" in str(outcome)
    assert "E050" in str(outcome)


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        ("a cat", "must be a list of texts, got 'a cat'"),
        ([1], "must be a list of texts"),
        (["a cat", " \n"], "blank phrase"),
        (["a cat"] * 9, "has 9 phrases, at most 8"),
    ],
)
def test_malformed_phrases_fail_their_item_alone(exact: RewardModel, phrases: Any, message: str) -> None:
    bad, good = exact.score_items([IMAGE] * 2, ["", ""], [{"noun_phrases": phrases}, PHRASES])
    assert isinstance(bad, ItemError)
    assert message in str(bad)
    assert isinstance(good, Score)


def test_a_prompt_without_phrases_scores_one(exact: RewardModel, rounded: RewardModel) -> None:
    for reward in (exact, rounded):
        assert reward.score([IMAGE] * 2, ["", ""], [{"noun_phrases": []}] * 2) == [1.0, 1.0]


def test_the_rounded_recipe_rounds_each_answer_and_then_the_product(rounded: RewardModel) -> None:
    batch = rounded.prepare([IMAGE], [""], [PHRASES])
    raw = rounded.answer(batch.inputs).tolist()  # type: ignore[attr-defined]
    (outcome,) = rounded.run(batch)
    assert isinstance(outcome, Score)
    answers = list(outcome.details["questions"].values())
    assert answers == pytest.approx([round(p, 4) for p in raw], abs=1e-7)
    assert answers != pytest.approx(raw, abs=1e-7)
    assert outcome.value == round(math.prod(answers), 4)
    assert outcome.value != rounded.forward(batch.inputs).item()


def test_the_vision_pass_is_shared_by_the_questions_of_an_image(exact: RewardModel) -> None:
    batch = exact.prepare(
        [IMAGE, IMAGE.copy()], ["", ""], [PHRASES, {"noun_phrases": ["a red cat", "a sea"]}]
    )
    assert len(batch.inputs["pixel_values"]) == 1
    assert len(batch.inputs["input_ids"]) == 3
    assert batch.inputs["slots"][:, :3].tolist() == [[0, 1, 3], [0, 2, 3]]


def test_padding_of_a_question_is_not_attended_to(exact: RewardModel) -> None:
    alone = questions(exact, "", {"noun_phrases": ["a cat"]})["a cat"]
    beside = questions(exact, "", {"noun_phrases": ["a cat", "a very long phrase about a horse on the moon"]})
    assert beside["a cat"] == pytest.approx(alone, rel=1e-5)


def test_a_checkpoint_for_other_weights_is_refused(tmp_path: Path) -> None:
    case = read_case(FIXTURES / "blipvqa")
    model_class, variant = resolve(case.reward)
    other = {**case.config, "vision": {**case.config["vision"], "num_hidden_layers": 3}}
    with pytest.raises(WeightsError, match="does not fit"):
        model_class.load(replace(variant, config=other), case.files)
    state = torch.load(case.files["checkpoint"], weights_only=True)["model"]
    state["text_decoder.extra"] = torch.zeros(1)
    torch.save({"model": state}, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match=r"text_decoder\.extra"):
        model_class.load(
            replace(variant, config=case.config), {**case.files, "checkpoint": tmp_path / "more.pth"}
        )


def test_weights_named_as_transformers_does_are_read_and_score_the_same(
    exact: RewardModel, tmp_path: Path
) -> None:
    case = read_case(FIXTURES / "blipvqa")
    exact.net.save_pretrained(tmp_path)  # type: ignore[operator]
    model_class, variant = resolve(case.reward)
    files = {**case.files, "checkpoint": tmp_path / "model.safetensors"}
    again = model_class.load(replace(variant, config=case.config), files)
    assert again.score([IMAGE], [""], [PHRASES]) == exact.score([IMAGE], [""], [PHRASES])


def test_the_mini_finds_the_phrases_of_a_prompt_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    mini = load("blipvqa:mini", device="cpu")
    prompt = "A red circle above two blue squares, which are to the left of one green cross"
    assert list(questions(mini, prompt, {})) == [
        "A red circle",
        "two blue squares",
        "one green cross",
        "A red circle above two blue squares",
        "two blue squares to the left of one green cross",
    ]
    assert list(questions(mini, prompt, PHRASES)) == PHRASES["noun_phrases"]
    assert list(questions(mini, "a cat", {})) == ["a cat"]
