r"""VQAScore by CLIP-FlanT5 in upstream's own code: linzhiqiu/t2v_metrics (Apache-2.0) before it was dropped.

    python3.11 -m venv ENV && ENV/bin/pip install --no-deps -r tests/parity/oracles/requirements/t2v.txt
    git clone https://github.com/linzhiqiu/t2v_metrics CHECKOUT
    git -C CHECKOUT checkout 10d549b369861aab49e7dbe9f33a469a17ef1129
    ENV/bin/python tests/parity/oracles/vqascore_clip_flant5.py --upstream CHECKOUT \
        --out tests/parity/fixtures

Upstream's `CLIPT5Model` loads a small checkpoint with its own `load_pretrained_model` and scores with its own
`forward`. Four things around it are ours:
- the packages above `clip_t5_model` are empty: their `__init__` imports every other model;
- the vision tower is a small one in a folder, the tokenizer a small one of T5's format;
- `transformers` takes a picture of one pixel for one with one channel and fails; upstream is given two by two
  of the same colour ("enlarged"), which resize to the same; the failure is seen to occur before that;
- upstream casts the weights to bfloat16, so they are drawn to be exact in it, and are then held in float32.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from _oracle import INPUTS, environment, mend_torchvision, randomize, read_pairs, write_case

COMMIT = "10d549b369861aab49e7dbe9f33a469a17ef1129"
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
SPARE_ROWS = 28  # FLAN-T5's vocabulary has as many rows behind its tokenizer's last token
OPTIONS = (
    {"question": "Is there {} in the picture?"},
    {"question": 'How well does "{}" describe it?', "answer": "very well"},
    {"answer": "No"},
)


def import_upstream(checkout: Path) -> Any:
    """Return upstream's module `clip_t5_model`, without what its packages import beside it."""
    mend_torchvision()
    names = ("t2v_metrics", "t2v_metrics.models", "t2v_metrics.models.vqascore_models")
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = [str(checkout.joinpath(*name.split(".")))]
        sys.modules[name] = module
    from t2v_metrics.models.vqascore_models import clip_t5_model

    return clip_t5_model


def write_tokenizer(folder: Path) -> int:
    """Train a vocabulary of T5's kind on the prompts; return the tokenizer's length."""
    import sentencepiece
    from transformers import T5Tokenizer

    text = folder / "text"
    lines = [row["prompt"].replace("\n", " ") or "Yes No yes no" for row in read_pairs()]
    text.write_text("\n".join(lines * 4 + ["Does this figure show USER ASSISTANT Yes No"] * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "spiece"),
        vocab_size=360,
        character_coverage=0.98,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        max_sentence_length=100_000,
        minloglevel=2,
    )
    tokenizer = T5Tokenizer(str(folder / "spiece.model"))
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_checkpoint(upstream: Any, folder: Path, vision: Path, tokens: int) -> None:
    """Write a small CLIP-FlanT5 as `save_pretrained` does, its weights exact in bfloat16."""
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(vision)
    size = VISION["image_size"]
    CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    ).save_pretrained(vision)
    clip_t5 = sys.modules[upstream.CLIPT5ForConditionalGeneration.__module__]
    config = clip_t5.CLIPT5Config(
        vocab_size=tokens + SPARE_ROWS,
        d_model=32,
        d_kv=12,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        layer_norm_epsilon=1e-5,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        mm_vision_tower=str(vision),
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_projector_type="mlp2x_gelu",
        mm_hidden_size=VISION["hidden_size"],
    )
    model = upstream.CLIPT5ForConditionalGeneration(config)
    randomize(model.named_parameters(), 5, spread)
    model.to(torch.bfloat16).save_pretrained(folder, safe_serialization=False)


def spread(name: str, weight: Any) -> float:
    """Return a standard deviation at which scores differ well between pairs, and rounding does not grow."""
    if weight.ndim < 2:
        return 0.2
    if name.endswith(".q.weight"):
        return 0.06  # T5 does not divide by the root of the width
    if "shared" in name or "lm_head" in name or "position" in name:
        return 0.35
    return float(weight[0].numel() ** -0.5)


def must_fail(scorer: Any, path: Path) -> None:
    """Raise if upstream scores what it is said to fail on."""
    try:
        scorer.forward([str(path)], ["a"])
    except ValueError:
        return
    raise SystemExit(f"upstream scores {path} after all")


def main() -> None:
    """Write the checkpoint and the case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    upstream = import_upstream(options.upstream)
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    folder = options.out / "vqascore-clip-flant5"
    checkpoint = folder / "clip-flant5-xl"
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "tokenizer").mkdir()
        tokens = write_tokenizer(work / "tokenizer")
        write_checkpoint(upstream, checkpoint, work / "vision", tokens)
        shutil.copy(work / "tokenizer" / "spiece.model", folder)
        known = upstream.CLIP_T5_MODELS["clip-flant5-xl"]
        known["tokenizer"]["path"], known["model"]["path"] = str(work / "tokenizer"), str(checkpoint)
        scorer = upstream.CLIPT5Model("clip-flant5-xl", device="cpu", cache_dir=temporary)
        scorer.model.float()
    config = json.loads((checkpoint / "config.json").read_text())
    config["mm_vision_tower"] = "openai/clip-vit-large-patch14-336"
    (checkpoint / "config.json").write_text(json.dumps(config, indent=1))

    rows = [{**row, "metadata": {}} for row in read_pairs()]
    rows += [{**row, "metadata": extra} for row, extra in zip(rows[2:], OPTIONS, strict=False)]
    pairs = []
    for row in rows:
        given = {f"{name}_template": text for name, text in row["metadata"].items()}
        path = INPUTS / row["image"]
        with Image.open(path) as image:
            if image.size == (1, 1):
                must_fail(scorer, path)
                row = {**row, "enlarged": True}
                path = folder.with_suffix(".png")
                image.convert("RGB").resize((2, 2)).save(path)
        (score,) = scorer.forward([str(path)], [row["prompt"]], **given)
        pairs.append({**row, "score": float(score), "details": {}, "error": None})
    folder.with_suffix(".png").unlink(missing_ok=True)
    case = {
        "reward": "vqascore:clip-flant5-xl",
        "recipe": "vqascore/clip-flant5",
        "config": {"vision": VISION},
        "files": {"checkpoint": "clip-flant5-xl", "vocabulary": "spiece.model"},
        "oracle": {
            "name": "t2v_metrics, clip_t5_model.py",
            "commit": COMMIT,
            "environment": environment("torch", "transformers", "sentencepiece", "pillow"),
            "dtype": "float32",
        },
        "tolerance": 1e-5,
    }
    write_case(folder, case, pairs)


if __name__ == "__main__":
    main()
