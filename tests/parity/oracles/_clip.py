"""Tiny CLIP models and tokenizers for the oracles of pickscore, clipscore, aesthetic and mps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _oracle import INPUTS

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
TOKENIZER = FIXTURES / "_shared" / "clip_tokenizer"
"""A tokenizer of CLIP's kind with 914 tokens, as `clip_tokenizer.py` writes it."""

TINY: Mapping[str, Any] = {
    "projection_dim": 24,
    "text_config": {
        "vocab_size": 914,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 32,
    },
}
"""The small `CLIPModel`, with the keys of its `config.json`."""

PREPROCESSOR = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
"""`preprocessor_config.json` of OpenAI's and LAION's models on the hub."""


def with_activation(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return `config` with its activation, and with the end token that the models on the hub state."""
    return {
        "projection_dim": config["projection_dim"],
        "text_config": {**config["text_config"], "hidden_act": name, "eos_token_id": 2},
        "vision_config": {**config["vision_config"], "hidden_act": name},
    }


def spread(name: str, weight: Any) -> float:
    """Return a standard deviation at which scores differ well between pairs."""
    if name.endswith(("post_layernorm.bias", "final_layer_norm.bias", "ln_post.bias", "ln_final.bias")):
        return 1.0
    if weight.ndim < 2:
        return 0.2
    if "embedding" in name and "patch" not in name:
        return 0.7
    return 1.3 * float(weight[0].numel() ** -0.5)


def lean(image: Any, text: Any, image_bias: Any, text_bias: Any) -> None:
    """Turn the projection `text` (D, W) so that the mean prompt lies near the mean image.

    Cosines are then mostly positive, as trained models have them. Around zero a relative difference would
    measure the last bits of float32 and nothing else.
    """
    import torch

    with torch.no_grad():
        missing = image @ image_bias - text @ text_bias
        text += torch.outer(missing, text_bias) / text_bias.square().sum()


def write_processor(folder: Path) -> None:
    """Write a processor's files: PREPROCESSOR, and the shared tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=1))
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    for file in TOKENIZER.iterdir():
        (folder / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")


def open_image(name: str, *, least: int = 1) -> tuple[Any, bool]:
    """Open an input, and say whether it was converted.

    Images of another mode are converted to RGB. One whose height is under `least` is a plain colour, which
    the PIL processors of `transformers` take for channels; it is repeated to 224 x 224.
    """
    from PIL import Image

    image = Image.open(INPUTS / name)
    converted = image.mode != "RGB"
    image = image.convert("RGB")
    if image.height < least:
        return image.resize((224, 224), Image.Resampling.NEAREST), True
    return image, converted


def row(image: str, prompt: str, score: float, *, converted: bool, **more: Any) -> dict[str, Any]:
    """Return one pair of a case."""
    pair = {"image": image, "prompt": prompt, "metadata": {}, "score": score, "details": {}, "error": None}
    return {**pair, **more, **({"converted": True} if converted else {})}


def hub_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Rename OpenAI's weights as they are named on the hub, where `transformers` reads them."""
    plain = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "logit_scale": "logit_scale",
    }
    parts = (
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("visual.transformer.resblocks", "vision_model.encoder.layers"),
        ("transformer.resblocks", "text_model.encoder.layers"),
        ("ln_final", "text_model.final_layer_norm"),
        ("attn.out_proj", "self_attn.out_proj"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
    )
    renamed = {}
    for key, weight in state.items():
        if key in plain:
            renamed[plain[key]] = weight
        elif key in ("visual.proj", "text_projection"):
            renamed["visual_projection.weight" if "visual" in key else "text_projection.weight"] = weight.T
        else:
            for theirs, ours in parts:
                key = key.replace(theirs, ours)
            if ".attn.in_proj_" in key:
                for letter, part in zip("qkv", weight.chunk(3), strict=True):
                    renamed[key.replace("attn.in_proj_", f"self_attn.{letter}_proj.")] = part
            else:
                renamed[key] = weight
    return {key: weight.clone().contiguous() for key, weight in renamed.items()}
