"""Janus checkpoints: from the hub, a folder or the package, and back into a folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from transformers import AutoConfig, AutoProcessor, JanusForConditionalGeneration

from rewardzoo.errors import WeightsError

logger = logging.getLogger(__name__)

MINI = Path(__file__).parent / "minis" / "generator"

REVISIONS = {
    "deepseek-community/Janus-Pro-1B": "1655280bb75959cc1cb85529a2a8b26e7016072e",
    # No commit of the 7B repository is on record: what the hub has on its main branch is taken.
    "deepseek-community/Janus-Pro-7B": None,
}


def read(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype,
    attention: str | None = None,
) -> tuple[JanusForConditionalGeneration, Any]:
    """Read a Janus model and its processor; "mini" is the lab's generator.

    Raises:
        WeightsError: nothing there that can be read, another kind of model, or no processor beside it.
    """
    source = str(name_or_path)
    if source == "mini":
        if not (MINI / "config.json").exists():
            raise WeightsError(
                f"{MINI} is missing from this installation. Reinstall rewardzoo, or give a folder or a "
                f"repository: {', '.join(REVISIONS)}"
            )
        source = str(MINI)
    revision = revision or REVISIONS.get(source)
    auto_config: Any = AutoConfig
    auto_processor: Any = AutoProcessor
    model: Any = JanusForConditionalGeneration
    hub: Any = {"revision": revision, "trust_remote_code": False}
    try:
        config = auto_config.from_pretrained(source, **hub)
    except (OSError, ValueError) as error:
        raise _unreadable(source, revision, error) from error
    if config.model_type != "janus":
        raise WeightsError(_not_janus(source, config.model_type))
    try:
        processor: Any = auto_processor.from_pretrained(source, **hub)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{source} has no processor that can be read ({error}): prompts cannot be tokenised without it. "
            "Put processor_config.json, preprocessor_config.json, the tokenizer's files and "
            "chat_template.jinja of the model that it was trained from beside the weights: "
            "AutoProcessor.from_pretrained(base).save_pretrained(folder)."
        ) from error
    try:
        net, report = model.from_pretrained(
            source, dtype=dtype, attn_implementation=attention, output_loading_info=True, **hub
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(source, revision, error) from error
    if wrong := {kind: sorted(map(str, keys))[:3] for kind, keys in report.items() if keys}:
        raise WeightsError(f"{source} does not fit Janus's architecture: {wrong}")
    if (commit := getattr(config, "_commit_hash", None)) is not None:
        logger.info("%s at commit %s", source, commit)
    return net, processor


def _not_janus(source: str, kind: str) -> str:
    return (
        f"{source} is a {kind!r} model, not 'janus'. The checkpoints of DeepSeek's own code "
        f"('multi_modality') exist for transformers as {' and '.join(REVISIONS)}; others are converted by "
        "transformers' convert_janus_weights_to_hf.py."
    )


def _unreadable(source: str, revision: str | None, error: Exception) -> WeightsError:
    # DeepSeek's own repositories end here: their model type needs remote code.
    if "multi_modality" in str(error):
        return WeightsError(_not_janus(source, "multi_modality"))
    if Path(source).expanduser().is_dir():
        return WeightsError(f"{source} is not a Janus checkpoint that can be read: {error}")
    reason = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{type(error).__name__}: {error}"
    pin = f" --revision {revision}" if revision else ""
    return WeightsError(
        f"{source!r} is no folder here, is not in the cache {constants.HF_HUB_CACHE}, and the hub did not "
        f"give it ({reason}). On a machine that reaches the hub run `hf download {source}{pin}` and bring "
        "the cache here (HF_HOME), or give a folder. 'mini' needs no download."
    )
