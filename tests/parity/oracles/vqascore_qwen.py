r"""VQAScore by Qwen2.5-VL in upstream's own code: linzhiqiu/t2v_metrics 3.1 (Apache-2.0).

    python3.11 -m venv ENV && ENV/bin/pip install --no-deps -r tests/parity/oracles/requirements/t2v31.txt
    git clone https://github.com/linzhiqiu/t2v_metrics CHECKOUT
    git -C CHECKOUT checkout 6ecb74f92028f42c7e64546d3a71e98c8c73068f
    ENV/bin/python tests/parity/oracles/vqascore_qwen.py --upstream CHECKOUT --out tests/parity/fixtures

Upstream's `Qwen2VLModel` loads a small checkpoint and scores with its own `forward`, once as the folder's
generation_config.json says, with a repetition penalty, and once with a penalty of 1, which is the raw logits'
probability. Three things around it are ours:
- the packages above `qwen2vl_model` are empty, as their `__init__` imports every other model, and `decord`,
  which reads videos, is a stub;
- the path of the weights and their dtype, float32;
- the small model: its tokenizer, and its chat template, which is Qwen2.5-VL's own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

from _oracle import INPUTS, environment, mend_torchvision, randomize, read_pairs, write_case

COMMIT = "6ecb74f92028f42c7e64546d3a71e98c8c73068f"
PENALTY = 1.05  # of the released generation_config.json
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or "
    "'image' in content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: "
    "{% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
OPTIONS = (
    {"question": "Is there {} in the picture?"},
    {"question": 'Does this show "{}"?', "answer": "No"},
    {"answer": "yes"},
)


def import_upstream(checkout: Path) -> Any:
    """Return upstream's module `qwen2vl_model`, without what its packages import beside it."""
    mend_torchvision()
    for name in ("t2v_metrics", "t2v_metrics.models", "t2v_metrics.models.vqascore_models"):
        module = types.ModuleType(name)
        module.__path__ = [str(checkout.joinpath(*name.split(".")))]
        sys.modules[name] = module
    import qwen_vl_utils  # noqa: F401  it and transformers look for decord before the stub is there
    import transformers  # noqa: F401

    decord = types.ModuleType("decord")
    decord.VideoReader = decord.cpu = None
    sys.modules["decord"] = decord
    from t2v_metrics.models.vqascore_models import qwen2vl_model

    return qwen2vl_model


def write_processor(folder: Path) -> Any:
    """Write a small tokenizer of Qwen2's kind and the released preprocessing; return the tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast, Qwen2VLImageProcessor

    corpus = [
        "Does this figure show Please answer Yes or No. You are a helpful assistant. system user yes no"
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = corpus * 9 + ["Yes", "No", "yes", "no"] * 9
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.model.save(str(folder))
    own = Qwen2TokenizerFast(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        additional_special_tokens=[*SPECIAL[1:2], *SPECIAL[3:]],
        chat_template=TEMPLATE,
    )
    own.save_pretrained(folder)
    Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12845056).save_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["processor_class"] = "Qwen2_5_VLProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1))
    return own


def write_checkpoint(folder: Path) -> None:
    """Write a small Qwen2.5-VL, every weight random."""
    import torch
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = write_processor(folder)
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    config = Qwen2_5_VLConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32768,
        rope_theta=1000000.0,
        rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
        rms_norm_eps=1e-6,
        use_sliding_window=False,
        sliding_window=32768,
        max_window_layers=2,
        tie_word_embeddings=False,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
    )
    model = Qwen2_5_VLForConditionalGeneration(config)

    def spread(name: str, weight: Any) -> float:
        return 0.2 if weight.ndim < 2 else 0.5 if "embed_tokens" in name else weight[0].numel() ** -0.5

    randomize(model.named_parameters(), 11, spread)
    with torch.no_grad():
        head = model.lm_head.weight
        common = torch.randn(32, generator=torch.Generator().manual_seed(2)) * 0.3
        for word in ("Yes", "No", "yes"):  # plausible answers; the others are hardly ever first
            head[tokenizer.convert_tokens_to_ids(word)] *= 1.6
            head[tokenizer.convert_tokens_to_ids(word)] += common
        for token in ("<|im_end|>", "<|endoftext|>"):  # upstream fails where the answer ends before it begins
            head[tokenizer.convert_tokens_to_ids(token)] *= 0.05
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        do_sample=True,
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        repetition_penalty=PENALTY,
        temperature=0.000001,
    )
    model.save_pretrained(folder)


def ask(scorer: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with upstream's score, or with the reason why it has none."""
    given = {f"{name}_template": text for name, text in row["metadata"].items()}
    row = {**row, "score": None, "details": {}, "error": None}
    try:
        (score,) = scorer.forward([str(INPUTS / row["image"])], [row["prompt"]], **given)
    except ValueError as error:
        if "aspect ratio" not in str(error):
            raise
        return {**row, "error": "aspect ratio must be smaller than 200"}
    return {**row, "score": float(score)}


def main() -> None:
    """Write the checkpoint and both cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    upstream = import_upstream(options.upstream)
    import torch

    torch.set_num_threads(1)
    checkpoint = options.out / "_shared" / "vqascore-qwen2.5-vl"
    shutil.rmtree(checkpoint, ignore_errors=True)
    checkpoint.mkdir(parents=True)
    write_checkpoint(checkpoint)
    known = upstream.QWEN2_VL_MODELS["qwen2.5-vl-3b"]
    known["tokenizer"]["path"] = known["model"]["path"] = str(checkpoint)
    known["model"]["torch_dtype"] = torch.float32
    scorer = upstream.Qwen2VLModel("qwen2.5-vl-3b")

    rows = [{**row, "metadata": {}} for row in read_pairs()]
    rows += [{**row, "metadata": extra} for row, extra in zip(rows[2:], OPTIONS, strict=False)]
    for suffix, penalty in (("", 1.0), ("-penalised", PENALTY)):
        scorer.model.generation_config.repetition_penalty = penalty
        case = {
            "reward": f"vqascore:qwen2.5-vl-3b{suffix}",
            "recipe": f"vqascore/qwen{suffix}",
            "config": {},
            "files": {"checkpoint": f"../_shared/{checkpoint.name}"},
            "oracle": {
                "name": "t2v_metrics 3.1, qwen2vl_model.py",
                "commit": COMMIT,
                "environment": environment("torch", "transformers", "qwen-vl-utils", "pillow"),
                "dtype": "float32",
            },
            "tolerance": 1e-5,
        }
        write_case(options.out / f"vqascore-qwen{suffix}", case, [ask(scorer, row) for row in rows])


if __name__ == "__main__":
    main()
