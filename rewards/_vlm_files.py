"""Vision-language models, tokenizers and preprocessing from the folders in which they are released."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewardzoo.errors import WeightsError
from rewardzoo.rewards._vlm_images import LlavaImages, QwenImages, TileUse
from rewardzoo.rewards._weights import load_strictly


def read_model(folder: Path) -> Any:
    """Read a `transformers` vision-language model from its folder, strictly.

    Raises:
        WeightsError: a file is missing, or a weight is missing, unused or of another shape.
    """
    from transformers import AutoModelForImageTextToText

    auto: Any = AutoModelForImageTextToText
    try:
        model, report = auto.from_pretrained(
            folder,
            dtype="auto",
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{folder} is not a vision-language model that can be read: {error}") from error
    wrong = {kind: sorted(map(str, keys))[:3] for kind, keys in report.items() if keys}
    if wrong:
        raise WeightsError(f"{folder} does not fit this architecture: {wrong}")
    return model


def build_model(config: Any, state: Mapping[str, Tensor], source: Path, dtype: torch.dtype) -> Any:
    """Build the model of a `transformers` configuration and fill it with `state`, strictly.

    For checkpoints that `read_model` cannot read: renamed ones, or a single file. Tied weights are given
    once or twice.

    Raises:
        WeightsError: keys or shapes differ; the message names `source`.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    auto: Any = AutoModelForImageTextToText
    with no_init_weights():
        model = auto.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.tie_weights()
    head = "lm_head.weight"
    if head not in state and model.lm_head.weight is model.get_input_embeddings().weight:
        state = {**state, head: state["model.language_model.embed_tokens.weight"]}
    load_strictly(model, state, source)
    return model


def read_tokenizer(folder: Path) -> Any:
    """Read the fast tokenizer of a folder.

    Raises:
        WeightsError: there is none that can be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder} has no tokenizer that can be read: {error}") from error


def read_images(
    folder: Path, model: Any, tiles: TileUse = "anyres", pixels: tuple[int, int] | None = None
) -> QwenImages | LlavaImages:
    """Read the image preprocessing of a folder: see `VisionLanguageModel.from_folder`.

    Raises:
        WeightsError: there is no `preprocessor_config.json`, or the model is of no known family.
    """
    family = model.config.model_type
    try:
        if family in ("qwen2_vl", "qwen2_5_vl"):
            return QwenImages.from_folder(folder, pixels)
        if family == "llava_onevision":
            return LlavaImages.from_folder(folder, model, tiles)
    except OSError as error:
        raise WeightsError(f"{folder} has no image preprocessor that can be read: {error}") from error
    raise WeightsError(f"{folder} holds a {family!r}: Qwen2-VL, Qwen2.5-VL or LLaVA-OneVision are known")
