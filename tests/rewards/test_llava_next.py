"""LLaVA-NeXT's checkpoints, and probabilities of answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewardzoo.cli.parity import FIXTURES
from rewardzoo.errors import WeightsError
from rewardzoo.rewards._llava_next import VISION, read_llava_next, rename_upstream, translate
from rewardzoo.rewards._parity import read_case
from rewardzoo.rewards._yesno import Sampler, spellings, token_of, yes_or_no

FOLDER = FIXTURES / "_shared" / "llava-next"
TINY = read_case(FIXTURES / "orm-yes-no").config["vision"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "critic"))


def change(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_an_unknown_key_is_refused_by_name(copy) -> None:
    state = load_file(copy / "model.safetensors")
    save_file({**state, "model.surprise": torch.zeros(1)}, copy / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.surprise"):
        read_llava_next(copy, vision=TINY)


def test_a_missing_vision_tower_is_refused(copy) -> None:
    state = load_file(copy / "model.safetensors")
    save_file({k: v for k, v in state.items() if "vision_tower" not in k}, copy / "model.safetensors")
    with pytest.raises(WeightsError, match="vision_tower"):
        read_llava_next(copy, vision=TINY)


def test_weights_of_another_size_are_refused(copy) -> None:
    with pytest.raises(WeightsError, match="does not fit"):
        read_llava_next(copy, vision={**TINY, "hidden_size": 8})


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_type", "llava_mistral"), ("mm_projector_type", "linear"), ("mm_patch_merge_type", "flat")],
)
def test_another_kind_of_llava_is_refused_by_what_differs(copy, key: str, value: str) -> None:
    change(copy, **{key: value})
    with pytest.raises(WeightsError, match=f"{key} is '{value}'"):
        read_llava_next(copy, vision=TINY)


def test_rows_behind_the_tokenizers_vocabulary_are_never_predicted() -> None:
    net = read_llava_next(FOLDER, vision=TINY)
    rows = net.model.get_input_embeddings().weight.shape[0]
    assert net.vocabulary == len(net.tokenizer) < rows


def test_a_tokenizer_without_the_images_mark_gets_it_and_predicts_no_more_for_it(copy) -> None:
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    marks = settings["added_tokens_decoder"]
    kept = {i: token for i, token in marks.items() if token["content"] != "<image>"}
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "added_tokens_decoder": kept}))
    added = json.loads((copy / "added_tokens.json").read_text())
    del added["<image>"]
    (copy / "added_tokens.json").write_text(json.dumps(added))
    net = read_llava_next(copy, vision=TINY)
    assert net.image_token == net.vocabulary == len(net.tokenizer) - 1


def test_the_released_size_has_the_names_and_shapes_that_upstream_saves() -> None:
    from transformers import AutoModelForImageTextToText

    settings = {  # of lmms-lab/llava-onevision-qwen2-7b-ov
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_theta": 1000000.0,
    }
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(translate(settings, 151646, VISION))
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    tower = "model.vision_tower.vision_tower.vision_model."
    upstream = {
        f"{tower}embeddings.position_embedding.weight": (729, 1152),
        f"{tower}encoder.layers.25.mlp.fc1.weight": (4304, 1152),
        f"{tower}post_layernorm.bias": (1152,),
        "model.mm_projector.0.weight": (3584, 1152),
        "model.mm_projector.2.weight": (3584, 3584),
        "model.image_newline": (3584,),
        "model.embed_tokens.weight": (152064, 3584),
        "model.layers.27.self_attn.k_proj.bias": (512,),
        "model.norm.weight": (3584,),
        "lm_head.weight": (152064, 3584),
    }
    renamed = rename_upstream({name: torch.empty(shape, device="meta") for name, shape in upstream.items()})
    assert {name: tuple(weight.shape) for name, weight in renamed.items()}.items() <= shapes.items()
    assert not any(".layers.26." in name for name in shapes if "vision_tower" in name)
    assert model.config.text_config.rope_parameters["rope_theta"] == 1000000.0


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.3, 20, 0.8), (1.0, 50, 1.0), (1.7, 0, 0.5)])
def test_the_sampler_warps_as_transformers_does(temperature: float, top_k: int, top_p: float) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    expected = logits
    for warper in warpers:
        expected = warper(None, expected)
    torch.testing.assert_close(
        Sampler(temperature, top_k, top_p).probabilities(logits), expected.softmax(-1), atol=1e-7, rtol=1e-6
    )


def test_yes_or_no_is_the_softmax_over_the_two() -> None:
    logits = torch.tensor([[1.0, -2.0, 9.0]])
    assert yes_or_no(logits, 0, 1).item() == pytest.approx(logits[0, :2].softmax(0)[0].item())


def test_answers_are_known_in_any_case_but_not_behind_a_space() -> None:
    tokenizer = read_llava_next(FOLDER, vision=TINY).tokenizer
    words = tokenizer.convert_ids_to_tokens(spellings(tokenizer, ["yes", "no"]))
    assert set(words) == {"yes", "no", "Yes", "No"}
    assert tokenizer.convert_ids_to_tokens(token_of(tokenizer, "yes")) == "yes"
    with pytest.raises(WeightsError, match="'helicopter'"):
        token_of(tokenizer, "helicopter")
