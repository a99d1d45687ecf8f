"""What parity cannot show of HPSv3: recipes apart, dtypes, bad prompts, wrong checkpoints, padding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rewardzoo.cli.parity import FIXTURES
from rewardzoo.errors import ItemError, WeightsError
from rewardzoo.rewards import RewardModel, Score
from rewardzoo.rewards._parity import load_case, read_case
from rewardzoo.rewards.hpsv3 import INSTRUCTION, HPSv3, RatingHead

SHARED = FIXTURES / "_shared" / "hpsv3"
CHECKPOINT = SHARED / "HPSv3.safetensors"
FILES = {"checkpoint": CHECKPOINT, "processor": SHARED / "processor"}
VARIANT = HPSv3.spec.variants[0]


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return load_case(read_case(FIXTURES / "hpsv3-v3"))


@pytest.fixture
def picture() -> Iterator[Image.Image]:
    with Image.open(FIXTURES.parent / "inputs" / "wide.png") as image:
        yield image


def test_the_default_places_tokens_one_after_the_other_and_the_other_recipe_does_not(
    model: RewardModel, picture: Image.Image
) -> None:
    spatial = load_case(read_case(FIXTURES / "hpsv3-v3-m-rope"))
    assert VARIANT.recipe == "hpsv3/sequential"
    here, there = (m.prepare([picture], ["a cat"]).inputs["position_ids"] for m in (model, spatial))
    assert here.tolist() == [list(range(here.shape[1]))]
    assert there.shape == (3, *here.shape)
    one, other = (m.score([picture], ["a cat"])[0] for m in (model, spatial))
    assert abs(one - other) > 0.01


def test_sigma_is_the_exponential_of_the_second_output(model: RewardModel, picture: Image.Image) -> None:
    batch = model.prepare([picture], ["a cat"])
    with torch.no_grad():
        ((mean, log),) = model.net(batch.inputs).tolist()
    (outcome,) = model.score_items([picture], ["a cat"])
    assert isinstance(outcome, Score)
    assert outcome.value == pytest.approx(mean)
    assert outcome.details["log_sigma"] == pytest.approx(log)
    assert outcome.details["sigma"] == pytest.approx(torch.tensor(log).exp().item())


def test_every_image_becomes_about_256_tokens(model: RewardModel) -> None:
    for size in ((1, 1), (2000, 2000), (640, 360)):
        grid = model.prepare_image(Image.new("RGB", size))["image_grid_thw"]
        assert 190 <= int(grid.prod()) // 4 <= 290, size


def test_a_prompt_with_the_rated_token_or_the_image_token_is_refused_alone(
    model: RewardModel, picture: Image.Image
) -> None:
    prompts = ["a <|Reward|> for a cat", "a cat", "<|image_pad|>"]
    outcomes = model.score_items([picture] * 3, prompts)
    assert [isinstance(outcome, ItemError) for outcome in outcomes] == [True, False, True]
    assert "<|Reward|>" in str(outcomes[0])
    assert "<|image_pad|>" in str(outcomes[2])


def test_braces_and_quotes_of_a_prompt_reach_the_model_as_they_are(model: RewardModel) -> None:
    prompt = '{0} {} {text_prompt} "x"\n'
    asked = model.prepare_prompt(prompt, {})
    assert f"Textual prompt - {prompt}\n\n\n\nPlease provide" in asked
    assert asked.count("<|Reward|>") == INSTRUCTION.count("<|Reward|>") == 1


def test_one_side_over_200_times_the_other_is_refused(model: RewardModel) -> None:
    (outcome,) = model.score_items([Image.new("RGB", (201, 1))], ["a line"])
    assert isinstance(outcome, ItemError)
    assert "aspect ratio" in str(outcome)


def test_the_checkpoint_of_mixed_precision_loads_and_its_head_stays_in_float32(
    tmp_path: Path, picture: Image.Image, model: RewardModel
) -> None:
    state = load_file(CHECKPOINT)
    mixed = {k: t if k.startswith("rm_head") else t.bfloat16() for k, t in state.items()}
    save_file(mixed, tmp_path / "HPSv3.safetensors")
    loaded = HPSv3.load(VARIANT, {**FILES, "checkpoint": tmp_path / "HPSv3.safetensors"})
    head = state["rm_head.0.weight"]
    for dtype in (torch.bfloat16, torch.float32):
        loaded.to("cpu", dtype)
        assert loaded.dtype == dtype
        assert torch.equal(loaded.net.rm_head[0].weight, head)
    # Weights were rounded to three digits, so scores agree roughly.
    expected = model.score([picture], ["a cat"])[0]
    assert loaded.score([picture], ["a cat"])[0] == pytest.approx(expected, abs=0.3)
    loaded.to("cpu", torch.bfloat16)
    assert loaded.score([picture], ["a cat"])[0] == pytest.approx(expected, abs=0.5)


def test_the_head_may_be_made_more_precise() -> None:
    assert RatingHead(4).double()[0].weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rm_head.3.weight": None}, "3.weight"),
        ({"visual.blocks.0.attn.qkv.bias": None}, "visual.blocks.0.attn.qkv.bias"),
        ({"extra.weight": torch.zeros(1)}, "extra.weight"),
        ({"rm_head.5.weight": torch.zeros(1, 16)}, "5.weight"),
        ({"model.embed_tokens.weight": None}, "embed_tokens"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    state = {**load_file(CHECKPOINT), **change}
    path = tmp_path / "HPSv3.safetensors"
    save_file({key: tensor for key, tensor in state.items() if tensor is not None}, path)
    with pytest.raises(WeightsError, match=message):
        HPSv3.load(VARIANT, {**FILES, "checkpoint": path})


def test_a_processor_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"config\.json"):
        HPSv3.load(VARIANT, {**FILES, "processor": tmp_path})
