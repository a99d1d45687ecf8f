"""Checkpoints of LLaVA-NeXT's own format (`LlavaQwenForCausalLM`), read into `transformers`' LLaVA-OneVision.

Source of the format: LLaVA-VL/LLaVA-NeXT, `llava/model/{builder,llava_arch}.py` and
`multimodal_encoder/siglip_encoder.py` (Apache-2.0). What of it is not in the folder's `config.json`:
- the vision tower is SigLIP so400m at 384 pixels without its last layer, its final norm and its head;
- the vocabulary is cut to the tokenizer's: rows of the embedding behind it are never predicted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from rewardzoo.errors import WeightsError
from rewardzoo.rewards._vlm import VisionLanguageModel, build_model
from rewardzoo.rewards._vlm_images import LlavaImages, TileUse
from rewardzoo.rewards._weights import read_checkpoint

VISION: Mapping[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,  # 27, of which upstream deletes the last
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
"""SigLIP so400m as upstream cuts it, in `SiglipVisionConfig`'s words."""

_TEXT = (  # fields that upstream's configuration shares with Qwen2Config
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
)
_RENAMES = (  # upstream's key -> that of LlavaOnevisionForConditionalGeneration
    (r"^model\.vision_tower\.vision_tower\.vision_model\.", "model.vision_tower."),
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"^model\.(layers|embed_tokens|norm)\.", r"model.language_model.\1."),
)


class LlavaNext(VisionLanguageModel):
    """A `VisionLanguageModel` that predicts the first `vocabulary` tokens only.

    `limit` is the longest dialogue in tokens, the image's included: upstream cuts off what is behind it, the
    question first.
    """

    penalises_dialogue: ClassVar[bool] = False
    """Upstream generates from embeddings: `transformers` is not told of the dialogue's tokens."""

    def __init__(
        self, model: Any, tokenizer: Any, images: LlavaImages, *, vocabulary: int, limit: int | None
    ) -> None:
        super().__init__(model, tokenizer, images)
        self.vocabulary = vocabulary
        self.limit = limit
        self.image_length = images.patches**2 + 1  # the newline behind it

    def _logits_of(self, hidden: Tensor) -> Tensor:
        return super()._logits_of(hidden)[..., : self.vocabulary]


def read_llava_next(
    folder: Path, *, tiles: TileUse = "pad", vision: Mapping[str, Any] | None = None
) -> LlavaNext:
    """Read a folder of LLaVA-NeXT's format: config, safetensors, tokenizer.

    `vision` overrides fields of `VISION`. Weights stay in the dtype they are stored in.

    Raises:
        WeightsError: a file is missing, it is another kind of LLaVA, or the weights do not fit.
    """
    from transformers import LlavaOnevisionImageProcessorPil, Qwen2Tokenizer

    settings = read_settings(folder)
    try:
        tokenizer: Any = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder} has no tokenizer that can be read: {error}") from error
    known = len(tokenizer)
    if "<image>" not in tokenizer.get_vocab():
        tokenizer.add_tokens(["<image>"], special_tokens=True)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    if image_token >= settings["vocab_size"]:
        raise WeightsError(f"{folder}: its embedding has no row for <image>, token {image_token}")
    state = rename_upstream(read_checkpoint(folder))
    config = translate(settings, image_token, {**VISION, **(vision or {})})
    stored = next(iter(state.values())).dtype
    model = build_model(config, state, folder, stored)
    model.generation_config.eos_token_id = read_generation(folder).get("eos_token_id")
    half = [0.5] * 3
    images = LlavaImages(LlavaOnevisionImageProcessorPil(image_mean=half, image_std=half), model, tiles)
    return LlavaNext(
        model,
        tokenizer,
        images,
        vocabulary=min(known, settings["vocab_size"]),
        limit=settings.get("tokenizer_model_max_length"),
    )


def is_llava_next(folder: Path) -> bool:
    """Say whether a folder's `config.json` is of LLaVA-NeXT's format, as far as it can be read."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # reading it as such says what is wrong
    return settings.get("model_type") in ("llava_qwen", "llava")


def read_settings(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        WeightsError: there is none, or it is of a LLaVA that is built differently.
    """
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder} has no config.json that can be read: {error}") from error
    needed = {
        "model_type": ("llava_qwen", "llava"),
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_patch_merge_type": ("spatial_unpad",),
    }
    for key, values in needed.items():
        if settings.get(key) not in values:
            raise WeightsError(f"{folder}: {key} is {settings.get(key)!r} where {values[0]!r} is expected")
    return settings


def read_generation(folder: Path) -> dict[str, Any]:
    """Read `generation_config.json`: {} where there is none, as `transformers` takes it."""
    try:
        found: dict[str, Any] = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder}: generation_config.json cannot be read: {error}") from error
    return found


def translate(settings: Mapping[str, Any], image_token: int, vision: Mapping[str, Any]) -> Any:
    """Say upstream's configuration in `transformers`' words: a `LlavaOnevisionConfig`."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    text: dict[str, Any] = {key: settings[key] for key in _TEXT if key in settings}
    rope = {"rope_type": "default", "rope_theta": settings.get("rope_theta", 10000.0)}
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision),
        text_config=Qwen2Config(**text, rope_parameters=rope),
        image_token_index=image_token,
        image_grid_pinpoints=settings.get("image_grid_pinpoints"),
        vision_aspect_ratio="anyres_max_9",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=bool(settings.get("tie_word_embeddings", False)),
    )


def rename_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map upstream's keys onto `transformers`'; others pass, for the strict load to judge."""
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in _RENAMES:
            key, changed = re.subn(pattern, replacement, key)
            if changed:
                break
        renamed[key] = tensor
    return renamed
