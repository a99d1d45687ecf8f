"""Tiny rewards with random weights, saved as upstream saves them and loaded through the real path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from rewardzoo.rewards import RewardModel, Variant, hpsv2, imagereward

Pixels = NDArray[np.uint8]
WORDS = ("a", "red", "blue", "circle", "square", "left", "of", "two", "above")


def randomize(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            is_scale = weight.ndim == 1 and ("norm" in name.lower() or "ln_" in name) and "bias" not in name
            spread = min(0.2, weight.shape[-1] ** -0.5) if weight.ndim == 2 else 0.2
            weight.copy_(1 + 0.1 * noise if is_scale else spread * noise)
    return net


def tiny_hpsv2(folder: Path) -> RewardModel:
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    }
    released = next(v for v in hpsv2.HPSv2.spec.variants if v.name == "v2.1")
    net = randomize(hpsv2.build(config))
    path = folder / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": {k: v.half() for k, v in net.state_dict().items()}}, path)
    return hpsv2.HPSv2.load(replace(released, config=config), {"checkpoint": path})


TINY_BLIP = {
    "vision": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "text": {
        "vocab_size": 16,
        "hidden_size": 32,
        "encoder_hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 48,
    },
}


def tiny_imagereward(folder: Path) -> RewardModel:
    released: Variant = next(v for v in imagereward.ImageReward.spec.variants if v.name == "v1.0")
    net = randomize(imagereward.RankedBlip(TINY_BLIP))
    state = {upstream_name(k): v for k, v in net.state_dict().items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(48)[None]
    state["blip.vision_proj.weight"] = torch.zeros(4, 4)
    torch.save(state, folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "##s", ".", ","])
    )
    files = {"checkpoint": folder / "ImageReward.pt", "vocabulary": folder / "vocab.txt"}
    return imagereward.ImageReward.load(replace(released, config=TINY_BLIP), files)


def upstream_name(key: str) -> str:
    """The key that THUDM/ImageReward's checkpoint has for one of ours."""
    if key.startswith("mlp."):
        return key
    return "blip." + key.replace(
        "vision_model.embeddings.class_embedding", "visual_encoder.cls_token"
    ).replace("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed").replace(
        "vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"
    ).replace("vision_model.post_layernorm", "visual_encoder.norm").replace(
        "vision_model.encoder.layers", "visual_encoder.blocks"
    ).replace("layer_norm", "norm").replace("self_attn.qkv", "attn.qkv").replace(
        "self_attn.projection", "attn.proj"
    )


BUILDERS: dict[str, Callable[[Path], RewardModel]] = {
    "hpsv2": tiny_hpsv2,
    "imagereward": tiny_imagereward,
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RewardModel]:
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in BUILDERS.items()}


@pytest.fixture(scope="session")
def pictures() -> list[Pixels]:
    rng = np.random.default_rng(0)
    shapes = [(32, 32), (64, 48), (20, 50), (32, 16), (1, 1), (7, 90)] * 11
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes[:64]]


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 60))) for _ in range(64)]
