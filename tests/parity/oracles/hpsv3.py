r"""Write the parity cases of `hpsv3` with upstream's own package.

Upstream: https://github.com/MizzenAI/HPSv3, MIT, as released on PyPI: `hpsv3` 1.0.0.

    python3.11 -m venv ENV
    ENV/bin/pip install --no-deps -r tests/parity/oracles/requirements/hpsv3.txt
    ENV/bin/python tests/parity/oracles/hpsv3.py --out tests/parity/fixtures

A small Qwen2-VL with random weights is built by upstream's `create_model_and_processor`, saved as upstream
saves `HPSv3.safetensors`, and read and run by upstream's `HPSv3RewardInferencer`: its image code, its chat,
its model class. Not upstream's: the configuration (small, float32 rather than bfloat16), the tokenizer's
vocabulary, and for the recipe `hpsv3/m-rope` the position ids, which are those of the model class's own
`get_rope_index`, given to upstream's `forward`.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from _oracle import mend_torchvision
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = [  # Qwen2-VL's, in its order
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (  # Qwen2-VL-7B-Instruct's
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_base(folder: Path, texts: list[str]) -> None:
    """Write what stands for `Qwen/Qwen2-VL-7B-Instruct`: small, random, with a vocabulary of `texts`."""
    from transformers import Qwen2TokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=620, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
        ),
    )
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=core,
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[1:],
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    # `transformers` 5 builds Qwen2's tokenizer from these two
    core.model.save(str(folder))
    Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=14 * 14 * 4 * 16384).save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Qwen2VLConfig(
        vocab_size=len(tokenizer) + 37,  # larger than the tokenizer's, as the base model's is
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rope_theta=10000.0,
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
        use_sliding_window=False,
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        vision_token_id=ids["<|vision_pad|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        tie_word_embeddings=False,
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)


def randomise(model: torch.nn.Module) -> None:
    """Draw every weight anew, so that no bias is an untested zero and no scale an untested one."""
    generator = torch.Generator().manual_seed(7)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if name.startswith("rm_head") and weight.ndim > 1:
            weight.data = noise * (2.0 / weight[0].numel()) ** 0.5
        elif weight.ndim > 1 and "embed_tokens" not in name:
            weight.data = noise * (1.5 / weight[0].numel()) ** 0.5
        elif weight.ndim > 1:
            weight.data = noise
        elif name.endswith("weight"):
            weight.data = 1 + 0.3 * noise
        else:
            weight.data = 0.3 * noise
    model.visual.patch_embed.proj.weight.data *= 0.8  # a slope in the pixels that finite differences can find
    final = model.rm_head[-1]
    final.weight.data *= 4  # scores that differ by more than their rounding, about the released model's
    final.bias.data = torch.tensor([6.0, 0.3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of all cases")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    sys.path.pop(0)  # this file's folder, where `hpsv3` would be this file
    mend_torchvision()

    import hpsv3
    from hpsv3.dataset.data_collator_qwen import INSTRUCTION, prompt_with_special_token
    from hpsv3.inference import HPSv3RewardInferencer
    from hpsv3.train import create_model_and_processor
    from hpsv3.utils.parser import (
        DataConfig,
        ModelConfig,
        PEFTLoraConfig,
        TrainingConfig,
        parse_args_with_yaml,
    )

    pairs = json.loads((out.parent / "inputs" / "pairs.json").read_text(encoding="utf-8"))
    texts = [INSTRUCTION, prompt_with_special_token] * 3 + [row["prompt"] for row in pairs]
    shared = out / "_shared" / "hpsv3"
    processor_files = shared / "processor"
    processor_files.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch, "base")
        base.mkdir()
        torch.manual_seed(0)
        write_base(base, texts)
        settings = yaml.safe_load(
            Path(hpsv3.__file__).with_name("config").joinpath("HPSv3_7B.yaml").read_text()
        )
        settings |= {
            "model_name_or_path": str(base),
            "bf16": False,
            "torch_dtype": "float32",
            "output_dir": scratch,
            "report_to": "none",
        }
        config = Path(scratch, "HPSv3_7B.yaml")
        config.write_text(yaml.safe_dump(settings))
        kinds = (DataConfig, TrainingConfig, ModelConfig, PEFTLoraConfig)
        (_, training, architecture, lora), _ = parse_args_with_yaml(kinds, str(config), is_train=False)
        model, _, _ = create_model_and_processor(architecture, lora, training)
        randomise(model)
        checkpoint = shared / "HPSv3.safetensors"
        save_file(model.state_dict(), checkpoint)
        for name in (
            "config.json",
            "preprocessor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
            "merges.txt",
        ):
            (processor_files / name).write_bytes((base / name).read_bytes())
        inferencer = HPSv3RewardInferencer(str(config), str(checkpoint), device="cpu")
        for case in ("v3", "v3-m-rope"):
            write_case(out, case, inferencer, pairs)


def write_case(out: Path, variant: str, inferencer: object, pairs: list[dict[str, str]]) -> None:
    """Score the pairs one by one, as upstream's own loop over a benchmark does, and write the case."""
    spatial = variant == "v3-m-rope"
    rows = []
    for pair in pairs:
        path = str(out.parent / "inputs" / pair["image"])
        row = {"image": pair["image"], "prompt": pair["prompt"], "metadata": {}}
        try:
            with torch.no_grad():
                if spatial:
                    batch = inferencer.prepare_batch([path], [pair["prompt"]])
                    places, _ = inferencer.model.get_rope_index(
                        batch["input_ids"], batch["image_grid_thw"], None, batch["attention_mask"]
                    )
                    rating = inferencer.model(return_dict=True, position_ids=places, **batch)["logits"][0]
                else:
                    rating = inferencer.reward([path], [pair["prompt"]])[0]
        except ValueError as error:
            if "aspect ratio" not in str(error):
                raise
            rows.append({**row, "score": None, "details": {}, "error": "aspect ratio"})
        else:
            # The loss in `qwen2vl_trainer.py` takes torch.exp of the second output for sigma.
            rows.append(
                {
                    **row,
                    "score": rating[0].item(),
                    "details": {"log_sigma": rating[1].item()},
                    "error": None,
                }
            )
    scores = torch.tensor([row["score"] for row in rows if row["score"] is not None])
    print(f"{variant}: {len(rows)} pairs, {scores.min():.3f} to {scores.max():.3f}, std {scores.std():.3f}")
    if not spatial:
        report_padding(
            inferencer, out, [p for p, r in zip(pairs, rows, strict=True) if r["error"] is None], scores
        )
    folder = out / f"hpsv3-{variant}"
    folder.mkdir(parents=True, exist_ok=True)
    case = {
        "reward": f"hpsv3:{variant}",
        "recipe": "hpsv3/m-rope" if spatial else "hpsv3/sequential",
        "config": {},
        "files": {
            "checkpoint": "../_shared/hpsv3/HPSv3.safetensors",
            "processor": "../_shared/hpsv3/processor",
        },
        "oracle": {
            "name": "hpsv3 1.0.0, hpsv3/inference.py"
            + (", position ids from transformers' get_rope_index" if spatial else ""),
            "commit": None,
            "environment": {
                "python": platform.python_version(),
                "torch": version("torch"),
                "transformers": version("transformers"),
                "pillow": version("pillow"),
            },
            "dtype": "float32",
        },
        "tolerance": 1e-5,
        "pairs": rows,
    }
    text = json.dumps(case, ensure_ascii=False, indent=1)
    (folder / "case.json").write_text(text + "\n", encoding="utf-8")


def report_padding(inferencer: object, out: Path, pairs: list[dict[str, str]], scores: torch.Tensor) -> None:
    """Print how far upstream's right-padded batches are from its singles."""
    worst = 0.0
    with torch.no_grad():
        for start in range(0, len(pairs), 4):
            part = pairs[start : start + 4]
            paths = [str(out.parent / "inputs" / pair["image"]) for pair in part]
            together = inferencer.reward(paths, [pair["prompt"] for pair in part])[:, 0]
            worst = max(worst, float((together - scores[start : start + 4]).abs().max()))
    print(f"upstream's batches of 4 are within {worst:.1e} of its singles")


if __name__ == "__main__":
    main()
