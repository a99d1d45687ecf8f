"""What the parity cases of VQAScore do not show: options, their errors, and files that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rewardzoo.cli.parity import FIXTURES
from rewardzoo.errors import ItemError, WeightsError
from rewardzoo.rewards import RewardModel
from rewardzoo.rewards._clip_t5 import ClipT5, rename_upstream
from rewardzoo.rewards._parity import load_case, read_case
from rewardzoo.rewards.vqascore import RECIPES, VQAScore

CLIP_T5, QWEN, LLAVA = "vqascore-clip-flant5", "vqascore-qwen", "vqascore-llava-onevision"
PROMPT = "a red circle"


@cache
def model(case: str) -> RewardModel:
    return load_case(read_case(FIXTURES / case))


def score(case: str, prompt: str = PROMPT, **metadata: Any) -> float:
    with Image.open(FIXTURES.parent / "inputs" / "odd.png") as image:
        (value,) = model(case).score([image], [prompt], [metadata])
    return value


@pytest.mark.parametrize("case", [CLIP_T5, QWEN])
def test_question_and_answer_are_options_of_an_item(case: str) -> None:
    usual = score(case)
    question = RECIPES[model(case).variant.recipe].question
    assert score(case, question=question, answer="Yes") == usual
    assert score(case, prompt="", question=question.replace("{}", PROMPT)) == usual
    assert score(case, question="Is it {}?") != usual
    assert score(case, answer="No") != usual


@pytest.mark.parametrize("case", [CLIP_T5, QWEN])
@pytest.mark.parametrize("metadata", [{"question": 3}, {"question": " "}, {"answer": ""}, {"answer": None}])
def test_an_option_that_is_no_text_is_an_item_error(case: str, metadata: dict[str, Any]) -> None:
    with pytest.raises(ItemError, match="must be a text"):
        score(case, **metadata)


def test_an_answer_of_several_tokens_is_for_clip_flant5_only() -> None:
    assert 0 < score(CLIP_T5, answer="Yes indeed") < 1
    with pytest.raises(ItemError, match="must be one token"):
        score(QWEN, answer="Yes indeed")


@pytest.mark.parametrize(("case", "mark"), [(CLIP_T5, "<image>"), (QWEN, "<|image_pad|>")])
def test_a_prompt_that_holds_the_images_mark_is_an_item_error(case: str, mark: str) -> None:
    with pytest.raises(ItemError, match="reads as an image"):
        score(case, prompt=f"a {mark}")


def test_the_penalised_recipe_scores_differently() -> None:
    assert score(QWEN) != pytest.approx(score(f"{QWEN}-penalised"), rel=1e-4)


def test_tiles_taken_for_frames_score_differently() -> None:
    assert score(LLAVA) != pytest.approx(score(f"{LLAVA}-frames"), rel=1e-4)


def test_every_recipe_of_the_spec_is_known() -> None:
    assert {variant.recipe for variant in VQAScore.spec.variants} == set(RECIPES)


def test_equal_images_pass_the_vision_tower_once() -> None:
    image = Image.new("RGB", (60, 60), "red")
    batch = model(CLIP_T5).prepare([image, image, image.copy()], ["a", "b", "a"])
    assert batch.inputs["pixel_values"].shape[0] == 1


def test_clip_flant5_has_a_head_of_its_own_cut_to_the_tokenizer() -> None:
    net = model(CLIP_T5).net
    assert isinstance(net, ClipT5)
    tokens = net.pieces.get_piece_size() + 100
    assert net.lm_head.weight.shape[0] == tokens < net.shared.weight.shape[0]
    assert not torch.equal(net.lm_head.weight, net.shared.weight[:tokens])


def test_special_tokens_in_a_prompt_are_read_as_t5_reads_them() -> None:
    net = model(CLIP_T5).net
    assert isinstance(net, ClipT5)
    plain = net.encode("a")[:-1]
    last = net.pieces.get_piece_size() + 99
    assert net.encode("a</s>a") == [*plain, 1, *plain, 1]
    assert net.encode("<extra_id_0><extra_id_99>") == [last, last - 99, 1]


def test_a_question_is_cut_at_2048_tokens() -> None:
    net = model(CLIP_T5).net
    assert isinstance(net, ClipT5)
    ids = net.question_ids("word " * 3000)
    assert len(ids) == 2048
    assert ids.count(-1) == 1


def _lose_a_weight(folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    del state["mm_projector.0.weight"]
    torch.save(state, file)


def _lose_the_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"d_ff": 65}))


def _lose_the_weights(folder: Path) -> None:
    (folder / "pytorch_model.bin").unlink()


@pytest.mark.parametrize("harm", [_lose_a_weight, _lose_the_config, _widen, _lose_the_weights])
def test_a_clip_flant5_that_does_not_fit_is_refused(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    case = read_case(FIXTURES / CLIP_T5)
    shutil.copytree(case.files["checkpoint"], tmp_path / "folder")
    harm(tmp_path / "folder")
    vision: Any = case.config["vision"]
    with pytest.raises(WeightsError):
        ClipT5.from_folder(tmp_path / "folder", case.files["vocabulary"], vision)


def test_keys_of_the_vision_tower_are_renamed_with_and_without_its_inner_name() -> None:
    rest = "encoder.layers.0.layer_norm1.weight"
    for key in (f"vision_tower.vision_tower.vision_model.{rest}", f"vision_tower.vision_tower.{rest}"):
        assert [*rename_upstream({key: torch.zeros(1)})] == [f"vision_tower.{rest}"]
