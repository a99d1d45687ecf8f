from dataclasses import replace

import pytest
import torch
from PIL import Image

from rewardzoo.cli.parity import FIXTURES
from rewardzoo.errors import WeightsError
from rewardzoo.rewards import aesthetic
from rewardzoo.rewards._parity import load_case, read_case

IMAGE = Image.radial_gradient("L").resize((227, 300)).convert("RGB")
CASE = read_case(FIXTURES / "aesthetic")


def test_the_prompt_is_not_read() -> None:
    first, second, third = load_case(CASE).score([IMAGE] * 3, ["a cat", "", "red " * 500])
    assert first == second == third


def test_an_image_that_occurs_twice_is_encoded_once() -> None:
    inputs = load_case(CASE).prepare([IMAGE, IMAGE.copy(), IMAGE.rotate(90)], [""] * 3).inputs
    assert len(inputs["pixel_values"]) == 2
    assert inputs["image_index"].tolist() == [0, 0, 1]


def test_the_rating_depends_on_the_direction_of_the_embedding_and_not_on_its_length() -> None:
    model = load_case(CASE)
    before = model.score([IMAGE], [""])
    model.net.clip.visual_projection.weight.mul_(3)
    assert model.score([IMAGE], [""]) == pytest.approx(before, rel=1e-5)


def test_a_head_with_activations_or_of_another_clip_is_refused(tmp_path) -> None:
    state = {k.replace("layers.2.", "layers.3."): v for k, v in torch.load(CASE.files["checkpoint"]).items()}
    torch.save(state, tmp_path / "ava+logos-l14-reluMSE.pth")
    _, variant = aesthetic.Aesthetic, aesthetic.Aesthetic.spec.variants[0]
    files = {**CASE.files, "checkpoint": tmp_path / "ava+logos-l14-reluMSE.pth"}
    with pytest.raises(WeightsError, match=r"layers\.3"):
        aesthetic.Aesthetic.load(replace(variant, config=CASE.config), files)
