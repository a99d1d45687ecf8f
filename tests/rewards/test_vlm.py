"""The shared vision-language machinery, on tiny models drawn here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rewardzoo.errors import ItemError, WeightsError
from rewardzoo.rewards._vlm import Turn, VisionLanguageModel, penalise_repeats
from rewardzoo.rewards._vlm_images import pinpoints_of, qwen_size

QUESTIONS = ("a red circle", "Yes", "two dogs and " * 9, "x")
IMAGE_INDEX = (0, 1, 1, 2)
SIDE = 28


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlm")
    made = {"qwen2": _qwen2, "qwen2.5": _qwen25, "llava": _llava}
    for name, make in made.items():
        make(root / name)
    return {name: root / name for name in made}


@pytest.fixture(
    scope="module",
    params=[
        ("qwen2", {}),
        ("qwen2.5", {}),
        ("qwen2.5", {"positions": "sequential"}),
        ("llava", {}),
        ("llava", {"tiles": "pad"}),
        ("llava", {"tiles": "frames"}),
    ],
    ids=str,
)
def vlm(request: pytest.FixtureRequest, folders: dict[str, Path]) -> VisionLanguageModel:
    name, options = request.param
    return VisionLanguageModel.from_folder(folders[name], **options).eval().requires_grad_(False)


def test_a_result_does_not_depend_on_neighbours_order_or_padding(vlm: VisionLanguageModel) -> None:
    images, chats = _images(vlm), _chats(vlm)
    together = vlm.next_token_logits(vlm.collate(images, IMAGE_INDEX, chats))
    apart = torch.cat(
        [
            vlm.next_token_logits(vlm.collate([images[i]], [0], [chat]))
            for i, chat in zip(IMAGE_INDEX, chats, strict=True)
        ]
    )
    turned = vlm.next_token_logits(vlm.collate(images, IMAGE_INDEX[::-1], chats[::-1])).flip(0)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, turned, rtol=1e-5, atol=1e-5)
    assert together.std(0).mean() > 0.1


def test_an_image_of_several_items_passes_the_vision_tower_once(vlm: VisionLanguageModel) -> None:
    images = _images(vlm)
    batch = vlm.collate(images, IMAGE_INDEX, _chats(vlm))
    assert len(batch["pixel_values"]) == sum(len(image["pixel_values"]) for image in images)
    assert len(vlm.encode_images(batch)) == sum(vlm.images.count(image) for image in images)


@pytest.mark.parametrize("name", ["qwen2", "qwen2.5", "llava"])
def test_logits_and_texts_are_those_of_transformers_own_path(folders: dict[str, Path], name: str) -> None:
    vlm = VisionLanguageModel.from_folder(folders[name]).eval().requires_grad_(False)
    images, chats = _images(vlm), _chats(vlm)
    texts = vlm.generate(vlm.collate(images, IMAGE_INDEX, chats), 8, repetition_penalty=1.3)
    for i, chat, text in zip(IMAGE_INDEX, chats, texts, strict=True):
        one = vlm.collate([images[i]], [0], [chat])
        given: dict[str, Any] = {k: one[k] for k in ("input_ids", "attention_mask", "pixel_values")}
        if name == "llava":
            given["image_sizes"] = one["image_sizes"]
        else:
            given["image_grid_thw"] = one["image_grid_thw"]
            given["mm_token_type_ids"] = (one["input_ids"] == vlm.image_token).int()
        torch.testing.assert_close(
            vlm.next_token_logits(one), vlm.model(**given).logits[:, -1], rtol=1e-5, atol=1e-5
        )
        theirs = vlm.model.generate(**given, do_sample=False, max_new_tokens=8, repetition_penalty=1.3)
        said = theirs[0, one["input_ids"].shape[1] :]
        assert text == vlm.tokenizer.decode(said, skip_special_tokens=True)


def test_sequential_positions_differ_from_rotary_ones(folders: dict[str, Path]) -> None:
    found = []
    for positions in ("rotary-3d", "sequential"):
        vlm = VisionLanguageModel.from_folder(folders["qwen2"], positions=positions).eval()
        found.append(vlm.next_token_logits(vlm.collate(_images(vlm)[:1], [0], _chats(vlm)[:1])))
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_generation_stops_at_the_end_token(folders: dict[str, Path]) -> None:
    vlm = VisionLanguageModel.from_folder(folders["llava"]).eval().requires_grad_(False)
    batch = vlm.collate(_images(vlm), IMAGE_INDEX, _chats(vlm))
    first = vlm.next_token_logits(batch).argmax(-1)
    vlm.model.generation_config.eos_token_id = [int(first[0])]
    texts = vlm.generate(batch, 6)
    assert texts[0] == vlm.tokenizer.decode(first[:1], skip_special_tokens=True)
    assert any(len(vlm.encode(text)) > 1 for text in texts[1:])
    with pytest.raises(ValueError, match="at least 1"):
        vlm.generate(batch, 0)


@pytest.mark.parametrize("size", [(30, 80), (100, 60), (64, 64), (3, 500), (300, 300), (17, 16)])
def test_the_size_of_an_image_tells_its_tokens(vlm: VisionLanguageModel, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    assert vlm.count_of(*size) == vlm.images.count(vlm.prepare_image(image))


def test_a_dialogue_is_chatml_with_the_image_before_its_text(vlm: VisionLanguageModel) -> None:
    turns = [Turn("user", "\nis it?", image=True), Turn("assistant", "yes"), Turn("user", "sure?")]
    assert vlm.chat(turns) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{vlm.images.mark}\nis it?<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not vlm.chat(turns, system=None).startswith("<|im_start|>system")


def test_a_prompt_with_the_image_token_is_refused(vlm: VisionLanguageModel) -> None:
    with pytest.raises(ItemError, match="reads as an image"):
        vlm.chat([Turn("user", f"a {vlm.images.token}", image=True)])


def test_a_word_of_several_tokens_has_no_token_id(vlm: VisionLanguageModel) -> None:
    assert vlm.tokenizer.decode([vlm.token_id("Yes")]) == "Yes"
    with pytest.raises(ValueError, match="must be one token"):
        vlm.token_id("Yes indeed")


@pytest.mark.parametrize("name", ["qwen2", "qwen2.5", "llava"])
def test_casting_the_weights_leaves_rotary_frequencies_alone(folders: dict[str, Path], name: str) -> None:
    vlm = VisionLanguageModel.from_folder(folders[name])
    wanted = {key: value.clone() for key, value in vlm.named_buffers() if key.endswith("inv_freq")}
    vlm.to(torch.bfloat16)
    found = dict(vlm.named_buffers())
    assert wanted
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert all(weight.dtype == torch.bfloat16 for weight in vlm.parameters())


def test_a_head_of_its_own_is_not_tied_to_the_embeddings(vlm: VisionLanguageModel) -> None:
    assert not torch.equal(vlm.model.lm_head.weight, vlm.model.get_input_embeddings().weight)


@pytest.mark.parametrize("fault", ["missing", "unused", "family"])
def test_a_folder_that_does_not_fit_is_refused(folders: dict[str, Path], tmp_path: Path, fault: str) -> None:
    from safetensors.torch import load_file, save_file

    for file in folders["llava"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)
    if fault == "missing":
        state.pop(next(key for key in state if "q_proj" in key))
    elif fault == "unused":
        state["language_model.model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config["text_config"]))
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(WeightsError):
        VisionLanguageModel.from_folder(tmp_path)


def test_only_tokens_of_the_dialogue_are_penalised() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    found = penalise_repeats(logits, torch.tensor([[3, 0, 1]]), torch.tensor([[0, 1, 1]]), 2.0)
    assert found.tolist() == [[1.0, -4.0, 2.0, -2.0]]  # 3 stands at padding, 2 nowhere


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((280, 140), (280, 140)),
        ((300, 5), (308, 28)),  # transformers' own rule would make it 448 x 28
        ((1, 1), (56, 56)),
        ((8192, 8192), (3584, 3584)),
        ((5600, 28), (5600, 28)),
    ],
)
def test_an_image_for_qwen_has_sides_of_whole_patches(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert qwen_size(*size, 28, 4 * 28**2, 16384 * 28**2) == wanted


def test_a_thread_is_refused_by_qwen() -> None:
    with pytest.raises(ItemError, match="aspect ratio"):
        qwen_size(5601, 28, 28, 3136, 12845056)


def test_pinpoints_are_read_from_pairs_and_from_a_span() -> None:
    assert pinpoints_of([[768, 384]], 384) == [(384, 768)]
    assert pinpoints_of("(1x1),...,(2x2)", 384) == [(384, 384), (768, 384), (384, 768), (768, 768)]


def _images(vlm: VisionLanguageModel) -> list[dict[str, Tensor]]:
    draw = np.random.default_rng(0)
    sizes = ((30, 80), (100, 60), (64, 64))
    return [
        vlm.prepare_image(Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)))
        for size in sizes
    ]


def _chats(vlm: VisionLanguageModel) -> list[str]:
    return [vlm.chat([Turn("user", f"\n{question}", image=True)]) for question in QUESTIONS]


def _tokenizer(folder: Path, special: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own.train_from_iterator(["Yes No yes no assistant user system"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _save(model: Any, folder: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=draw)
            weight.copy_(0.2 * noise + (1 if weight.ndim == 1 else 0))
    model.save_pretrained(folder)


_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
}
_QWEN = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def _qwen_parts(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from transformers import Qwen2VLImageProcessorPil

    tokenizer = _tokenizer(folder, ["<|endoftext|>", "<|im_end|>", *_QWEN])
    Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112).save_pretrained(folder)
    names = ("vision_start", "vision_end", "image", "video")
    ids = tokenizer.convert_tokens_to_ids(_QWEN[1:])
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = {**_TEXT, "vocab_size": len(tokenizer) + 3, "rope_parameters": rope}
    return text, {
        "tie_word_embeddings": False,
        **{f"{name}_token_id": i for name, i in zip(names, ids, strict=True)},
    }


def _qwen2(folder: Path) -> None:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text, ids = _qwen_parts(folder)
    vision = {"depth": 2, "embed_dim": 16, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 32}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    _save(Qwen2VLForConditionalGeneration(config), folder)


def _qwen25(folder: Path) -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text, ids = _qwen_parts(folder)
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    _save(Qwen2_5_VLForConditionalGeneration(config), folder)


def _llava(folder: Path) -> None:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokenizer = _tokenizer(folder, ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<image>", "<video>"])
    pins = [[SIDE * i, SIDE * j] for i in range(1, 4) for j in range(1, 4)]
    LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=pins
    ).save_pretrained(folder)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=7,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(**_TEXT, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pins,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
        tie_word_embeddings=False,
    )
    _save(LlavaOnevisionForConditionalGeneration(config), folder)
