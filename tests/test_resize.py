"""The resize that both sides of the wire can do."""

import numpy as np
import pytest
import torch
from PIL import Image

from rewardzoo.resize import PILLOW, ShortestAndCrop
from rewardzoo.rewards import Variant, _clip, gitvqa, imagereward, specs

SIZES = ((224, 224), (300, 201), (201, 300), (225, 223), (227, 224), (640, 37), (50, 20), (1024, 1024))
STEPS = (ShortestAndCrop(224), ShortestAndCrop(224, round_corner=False), ShortestAndCrop(63))


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_done_twice_it_is_done_once(step, size) -> None:
    once = step(picture(*size))
    assert once.size == (step.size, step.size)
    np.testing.assert_array_equal(np.asarray(step(once)), np.asarray(once))


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_step_that_is_told_can_be_read(step) -> None:
    assert ShortestAndCrop.read(str(step)) == step
    assert str(step).endswith(f"Pillow {PILLOW}")
    assert ShortestAndCrop.read(str(step).replace(PILLOW, "1.0")) == step


@pytest.mark.parametrize("text", ["", "lanczos shortest 9, crop rounded", "bicubic shortest 0, crop rounded"])
def test_a_step_of_another_kind_is_not_read(text) -> None:
    assert ShortestAndCrop.read(f"{text}, Pillow {PILLOW}") is None


def test_the_rewards_that_resize_bytes_declare_it_and_no_others() -> None:
    declared = {
        f"{spec.name}:{v.name}": (v.resize.size, v.resize.round_corner)
        for spec in specs()
        for v in spec.variants
        if v.resize is not None
    }
    assert declared == {
        "aesthetic:v2": (224, True),
        "clipscore:imagereward-l14": (224, True),
        "clipscore:mini": (64, True),
        "clipscore:paper-b32": (224, True),
        "clipscore:torchmetrics-cut-l14": (224, False),
        "clipscore:torchmetrics-l14": (224, False),
        "clipscore:unirl-service-l14": (224, False),
        "gitvqa:t2i-r1": (420, False),
        "imagereward:mini": (64, True),
        "imagereward:v1.0": (224, True),
        "mps:v1": (224, False),
        "mps:v1-eval": (224, False),
        "pickscore:mini": (64, False),
        "pickscore:v1": (224, False),
    }


def test_a_declared_size_is_that_of_the_network() -> None:
    found: dict[str, int] = {}

    def image_size(name: str, variant: Variant) -> int:
        if name == "imagereward":
            return imagereward.RankedBlip(variant.config).image_size
        build = gitvqa.build if name == "gitvqa" else _clip.build
        key = f"{build.__module__} {variant.config}"
        if key not in found:
            found[key] = build(variant.config).config.vision_config.image_size
        return found[key]

    with torch.device("meta"):
        for spec in specs():
            for variant in spec.variants:
                if variant.resize is not None:
                    assert variant.resize.size == image_size(spec.name, variant), (spec.name, variant.name)
