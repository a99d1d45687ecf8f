"""ImageReward's scores by its own package, `image-reward` 1.5 from PyPI (THUDM/ImageReward, Apache-2.0).

    python -m venv ENV && ENV/bin/pip install --no-deps -r tests/parity/oracles/requirements/imagereward.txt
    ENV/bin/python tests/parity/oracles/imagereward.py --out tests/parity/fixtures [--full]

Upstream's `ImageReward.load` reads the checkpoint and `ImageReward.score` scores, as they are. Around them:
- the small case has upstream's VisionTransformer, BertModel and MLP at other widths: `create_vit`, which
  knows base and large only, and the MLP's width of 768 are replaced. `--full` replaces nothing;
- `bert-base-uncased` is a folder of that name with a vocabulary of our own: the scores rest on it, and the
  tokenizer is upstream's;
- `ImageReward.ReFL` (training) and `clip` (another score) are stubs, their packages are not installed;
- upstream resizes and crops before it converts to RGB. For palettes that means nearest neighbours, for
  alpha a premultiplied resize. Ours converts first, so such images are given as RGB ("converted").
"""

from __future__ import annotations

import argparse
import json
import os
import string
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from _oracle import (
    INPUTS,
    environment,
    group_of_eight,
    measured,
    mend_torchvision,
    randomize,
    read_pairs,
    write_case,
)

PATCH, WIDTH, LAYERS, HEADS = 32, 32, 2, 2
TEXT = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}
TINY_TEXT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 48,
}
EXTRA = (
    ("square.png", "[MASK] a [CLS] red [ENC] circle [DEC] and [PAD] [UNK]"),
    ("photo.jpg", "[mask] [sep] lower case is not special"),
    ("large.png", "x" * 101 + " a word of over 100 letters"),
    ("tall.png", "zero\u200bwidth soft\u00adhyphen no\u00a0break \ufeff mark \u3000 wide \x07 bell"),
    ("wide.png", "İstanbul STRASSE Straße ﬁne ½ ① ™ \uff12\uff10"),
)


def vocabulary() -> list[str]:
    """Return word pieces: BERT's special tokens, letters, digits, signs, some words and endings."""
    words = "a an the of and red blue green circle square cat dog house sea light photo painting moon horse"
    signs = string.ascii_lowercase + string.digits + string.punctuation + "“”一只红色猫αελн"
    endings = ("##s", "##ing", "##ed", "##er", "##ly", "##tion")
    pieces = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
        *signs, *words.split()[1:], *(f"##{c}" for c in string.ascii_lowercase + string.digits), *endings,
    ]  # fmt: skip
    return list(dict.fromkeys(pieces))


def import_upstream() -> Any:
    """Return upstream's package."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    mend_torchvision()
    for name in ("ImageReward.ReFL", "clip"):
        sys.modules[name] = types.ModuleType(name)
    import ImageReward

    return ImageReward


def shrink() -> None:
    """Put small widths where upstream has its own written in."""
    module = sys.modules["ImageReward.ImageReward"]
    blip = sys.modules["ImageReward.models.BLIP.blip_pretrain"]
    vit = sys.modules["ImageReward.models.BLIP.vit"].VisionTransformer
    head = module.MLP

    def create_vit(name: str, image_size: int, *rest: Any) -> tuple[Any, int]:
        net = vit(img_size=image_size, patch_size=PATCH, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS)
        return net, WIDTH

    blip.create_vit = create_vit
    module.MLP = lambda width: head(TINY_TEXT["hidden_size"])


def spread(name: str, weight: Any) -> float:
    """Return a standard deviation at which scores differ well between pairs."""
    if weight.ndim < 2:
        return 0.1
    if "embed" in name or "token" in name:
        return 0.5
    if name.startswith("mlp"):
        return float(weight.shape[-1] ** -0.5)
    return float(weight[0].numel() ** -0.5)


def main() -> None:
    """Write the checkpoint, the vocabulary and the case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--full", action="store_true", help="ViT-L and BERT-base, a batch of eight, measured")
    options = parser.parse_args()

    upstream = import_upstream()
    import torch

    folder = (options.out / ("imagereward-full" if options.full else "imagereward")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, vocab_file = folder / "ImageReward.pt", folder / "vocab.txt"
    pieces = vocabulary()
    vocab_file.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    tiny = {**TINY_TEXT, "vocab_size": len(pieces) + 2}
    if not options.full:
        shrink()

    with tempfile.TemporaryDirectory() as workplace:
        bert = Path(workplace) / "bert-base-uncased"
        bert.mkdir()
        (bert / "vocab.txt").write_text(vocab_file.read_text(encoding="utf-8"), encoding="utf-8")
        med_config = Path(workplace) / "med_config.json"
        med_config.write_text(json.dumps(TEXT if options.full else {**TEXT, **tiny}))
        os.chdir(workplace)  # "bert-base-uncased" is this folder now
        draw(checkpoint, med_config)
        model = upstream.load(str(checkpoint), device="cpu", med_config=str(med_config))
        case: dict[str, Any] = {
            "reward": "imagereward:v1.0",
            "recipe": "imagereward/v1.0",
            "config": {} if options.full else config(tiny),
            "files": {"checkpoint": checkpoint.name, "vocabulary": vocab_file.name},
            "oracle": {
                "name": "image-reward 1.5, ImageReward/ImageReward.py",
                "commit": None,
                "environment": environment("torch", "torchvision", "transformers", "timm", "pillow"),
                "dtype": "float32",
            },
            "tolerance": 1e-5,
        }
        with torch.no_grad():
            pairs = full(model, case) if options.full else [ask(model, *row) for row in all_rows()]
    write_case(folder, case, pairs)


def draw(checkpoint: Path, med_config: Path) -> None:
    """Write random weights in upstream's format."""
    import torch

    net = sys.modules["ImageReward.ImageReward"].ImageReward(med_config=str(med_config))
    randomize(net.named_parameters(), 39, spread)
    torch.save(net.state_dict(), checkpoint)


def config(tiny: dict[str, Any]) -> dict[str, Any]:
    """Return our loader's overrides for the small case."""
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "patch_size": PATCH,
    }
    return {"vision": vision, "text": {**tiny, "encoder_hidden_size": WIDTH, "bos_token_id": 2}}


def all_rows() -> list[tuple[str, str]]:
    """Return the shared pairs and those that BERT's tokenizer calls for."""
    return [*((row["image"], row["prompt"]) for row in read_pairs()), *EXTRA]


def ask(model: Any, image: str, prompt: str) -> dict[str, Any]:
    """Return the pair with upstream's score."""
    from PIL import Image

    path = INPUTS / image
    pair: dict[str, Any] = {"image": image, "prompt": prompt, "metadata": {}}
    given: Any = str(path)
    if Image.open(path).mode != "RGB":
        given, pair["converted"] = Image.open(path).convert("RGB"), True
    return {**pair, "score": model.score(prompt, given), "details": {}, "error": None}


def full(model: Any, case: dict[str, Any]) -> list[dict[str, Any]]:
    """Score eight images and one prompt in one call, as upstream does for a list: images one by one."""
    rows = group_of_eight()
    with measured(case):
        scores = model.score(rows[0]["prompt"], [str(INPUTS / row["image"]) for row in rows])
    return [{**row, "score": score} for row, score in zip(rows, scores, strict=True)]


if __name__ == "__main__":
    main()
