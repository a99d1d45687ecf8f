"""What the rewards on CLIP share."""

import numpy as np
import pytest
import torch
import torchvision.transforms as T  # noqa: N812
from PIL import Image
from torchvision.transforms import InterpolationMode
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rewardzoo.cli.parity import FIXTURES
from rewardzoo.errors import WeightsError
from rewardzoo.rewards import _clip, clipscore, specs
from rewardzoo.rewards._images import CLIP_MEAN, CLIP_STD

SIZES = ((224, 224), (300, 201), (201, 300), (225, 223), (640, 37), (50, 20), (227, 450))
TINY = {
    "projection_dim": 16,
    "text_config": {
        "vocab_size": 60,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
    },
    "vision_config": {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
}
TOKENIZER = FIXTURES / "_shared" / "clip_tokenizer" / "tokenizer.json"


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_bytes_are_resized_and_cropped_as_torchvision_does(size) -> None:
    image = picture(*size)
    steps = [T.Resize(224, InterpolationMode.BICUBIC), T.CenterCrop(224), T.ToTensor()]
    expected = T.Compose([*steps, T.Normalize(CLIP_MEAN, CLIP_STD)])(image)
    assert torch.equal(_clip.pixels_of(image, 224, "torchvision"), expected)


@pytest.mark.parametrize("size", SIZES)
def test_bytes_are_resized_and_cropped_as_transformers_does(size) -> None:
    image = picture(*size)
    expected = CLIPImageProcessorPil()(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(_clip.pixels_of(image, 224, "transformers"), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_floats_are_resized_and_cropped_as_torchvision_does(size) -> None:
    image = picture(*size)
    steps = [T.ToTensor(), T.Resize(224), T.CenterCrop(224), T.Normalize(CLIP_MEAN, CLIP_STD)]
    assert torch.equal(_clip.pixels_of(image, 224, "floats"), T.Compose(steps)(image))


def test_where_a_crop_is_odd_the_two_libraries_begin_it_at_different_pixels() -> None:
    image = picture(227, 224)
    assert not torch.equal(
        _clip.pixels_of(image, 224, "torchvision"), _clip.pixels_of(image, 224, "transformers")
    )


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(_clip.VIT_B_32, 151_277_313), (_clip.VIT_L_14, 427_616_513), (_clip.VIT_H_14, 986_109_441)],
)
def test_the_released_architectures_have_as_many_weights_as_upstreams(config, parameters) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in _clip.build(config).parameters()) == parameters


def test_openais_networks_have_the_quick_gelu_and_laions_the_plain_one() -> None:
    for config, expected in (
        (_clip.VIT_B_32, "quick_gelu"),
        (_clip.VIT_L_14, "quick_gelu"),
        (_clip.VIT_H_14, "gelu"),
    ):
        with torch.device("meta"):
            net = _clip.build(config)
        assert (net.config.text_config.hidden_act, net.config.vision_config.hidden_act) == (expected,) * 2


def test_what_follows_the_end_token_has_no_effect() -> None:
    torch.manual_seed(0)
    net = _clip.build(TINY).eval()
    ids = torch.tensor([[57, 3, 4, 59, 59, 59], [57, 3, 4, 59, 7, 0]])
    first, second = _clip.encode_prompts(net, ids)
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    torch.testing.assert_close(_clip.encode_prompts(net, ids[:1, :4])[0], first, atol=1e-6, rtol=0)


def test_a_long_prompt_keeps_its_end_token_unless_it_is_cut_the_other_way() -> None:
    prompts = ["red " * 200, "a"]
    kept, cut = _clip.tokenizer(TOKENIZER, 77)(prompts), _clip.tokenizer_without_end(TOKENIZER, 77)(prompts)
    assert kept.shape == cut.shape == (2, 77)
    assert kept[0, -1] == kept.max() == 913
    assert cut[0].max() < 913
    assert torch.equal(kept[1], cut[1])


def test_padding_reaches_to_the_longest_prompt_or_to_the_full_length() -> None:
    assert _clip.tokenizer(TOKENIZER, 77)(["a", "a red circle"]).shape == (2, 8)
    filled = _clip.tokenizer(TOKENIZER, 77, fill=True)(["a"])
    assert filled.shape == (1, 77)
    assert set(filled[0, 2:].tolist()) == {913}


def test_openais_tokenizer_reads_its_own_special_tokens_and_not_open_clips() -> None:
    ids = _clip.openai_tokenizer()(["<|endoftext|>", "<end_of_text>", "a &amp; b", "a & b"])
    assert ids[0, :3].tolist() == [49406, 49407, 49407]
    assert ids[1, 1] != 49407
    assert torch.equal(ids[2], ids[3])


def test_saved_positions_are_passed_over_and_a_missing_weight_is_not(tmp_path) -> None:
    state = CLIPModel(CLIPConfig(**TINY)).state_dict()
    state["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    torch.save(state, tmp_path / "pytorch_model.bin")
    _clip.load(TINY, tmp_path / "pytorch_model.bin")
    del state["visual_projection.weight"]
    torch.save(state, tmp_path / "damaged.bin")
    with pytest.raises(WeightsError, match="visual_projection"):
        _clip.load(TINY, tmp_path / "damaged.bin")


def test_every_variant_of_clipscore_has_a_form() -> None:
    (spec,) = [spec for spec in specs() if spec.name == "clipscore"]
    assert {variant.recipe for variant in spec.variants} == set(clipscore.FORMS)
