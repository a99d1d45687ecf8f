"""HPSv2's scores by its own package, `hpsv2` 1.2.0 from PyPI (tgxs002/HPSv2, Apache-2.0).

    python -m venv ENV && ENV/bin/pip install --no-deps -r tests/parity/oracles/requirements/hpsv2.txt
    ENV/bin/python tests/parity/oracles/hpsv2.py --out tests/parity/fixtures [--full]

Run it in the environment `hpsv2-tv015` as well: with torchvision 0.15 the same package does not antialias,
and the script writes the case of that recipe.

Upstream's `img_score.score` runs as it is, on a model that upstream's factory builds from a small
configuration, or from ViT-H-14 with `--full`. Four things around it are ours:
- the wheel lacks CLIP's vocabulary file: it is put beside the tokenizer from `open_clip_torch`, whose file
  of that name is the same;
- `turtle`, of which upstream imports an unused name, is a stub: it would need Tk;
- RGBA images, which upstream keeps in four channels and then fails on, are given as RGB ("converted");
- images whose longest side is exactly 224, which upstream neither resizes nor pads and then fails on, are
  given padded with black ("padded"). The failures are seen to occur before that.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import types
from importlib.util import find_spec
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

SIZE = 224
CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2},
}


def import_upstream() -> Any:
    """Return upstream's module `img_score`."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [
        path for path in sys.path if Path(path).resolve() != here
    ]  # this file's name is theirs too
    mend_torchvision()
    bpe = "bpe_simple_vocab_16e6.txt.gz"
    theirs = Path(find_spec("hpsv2").submodule_search_locations[0]) / "src" / "open_clip" / bpe
    if not theirs.exists():
        shutil.copy(Path(find_spec("open_clip").submodule_search_locations[0]) / bpe, theirs)
    turtle = types.ModuleType("turtle")
    turtle.forward = None
    sys.modules["turtle"] = turtle
    from hpsv2 import img_score

    return img_score


def build(config: dict[str, Any] | None) -> tuple[Any, Any]:
    """Return upstream's model and preprocessing, as `img_score.initialize_model` asks for them."""
    from hpsv2.src.open_clip import create_model_and_transforms
    from hpsv2.src.open_clip.factory import add_model_config

    name = "ViT-H-14"
    if config is not None:
        name = "ViT-tiny"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.json"
            path.write_text(json.dumps(config))
            add_model_config(path)
    model, _, preprocess = create_model_and_transforms(
        name,
        None,
        precision="amp",
        device="cpu",
        jit=False,
        force_quick_gelu=False,
        force_custom_text=False,
        force_patch_dropout=False,
        force_image_size=None,
        pretrained_image=False,
        image_mean=None,
        image_std=None,
        light_augmentation=True,
        aug_cfg={},
        output_dict=True,
        with_score_predictor=False,
        with_region_predictor=False,
    )
    return model, preprocess


def spread(name: str, weight: Any) -> float:
    """Return a standard deviation at which scores differ well between pairs."""
    if name in ("ln_final.bias", "visual.ln_post.bias"):
        return 1.0  # a share that all pairs have in common, as released models have
    if weight.ndim < 2:
        return 0.3
    if name == "conv1.weight" or name.endswith(".conv1.weight"):
        return float(weight[0].numel() ** -0.5)
    return 1.0 if "embedding" in name else float(weight.shape[-1] ** -0.5)


def ask(img_score: Any, row: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return the row with upstream's score, and with what had to be done to its image."""
    from PIL import Image, ImageOps

    path = INPUTS / row["image"]
    image = Image.open(path)
    pair = {"image": row["image"], "prompt": row["prompt"], "metadata": {}}
    given: Any = str(path)
    if image.mode == "RGBA":
        must_fail(img_score, path, checkpoint)
        given, pair["converted"] = image.convert("RGB"), True
    elif max(image.size) == SIZE and min(image.size) != SIZE:
        must_fail(img_score, path, checkpoint)
        width, height = image.size
        left, top = (SIZE - width) // 2, (SIZE - height) // 2
        border = (left, top, SIZE - width - left, SIZE - height - top)
        given, pair["padded"] = ImageOps.expand(image.convert("RGB"), border, 0), True
    (score,) = img_score.score(given, row["prompt"], cp=str(checkpoint))
    return {**pair, "score": float(score), "details": {}, "error": None}


def must_fail(img_score: Any, path: Path, checkpoint: Path) -> None:
    """Raise if upstream scores what it is said to fail on."""
    try:
        img_score.score(str(path), "a", cp=str(checkpoint))
    except RuntimeError:
        return
    raise SystemExit(f"upstream scores {path} after all")


def main() -> None:
    """Write the checkpoint and the case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--full", action="store_true", help="ViT-H-14, a batch of eight, measured")
    options = parser.parse_args()

    img_score = import_upstream()
    import torch
    import torchvision

    antialias = tuple(map(int, torchvision.__version__.split(".")[:2])) >= (0, 17)
    recipe = "antialias" if antialias else "no-antialias"
    folder = options.out / (f"hpsv2-{recipe}-full" if options.full else f"hpsv2-{recipe}")
    shared = folder if options.full else options.out / "_shared" / "hpsv2"
    shared.mkdir(parents=True, exist_ok=True)
    checkpoint = shared / "HPS_v2.1_compressed.pt"

    model, preprocess = build(None if options.full else CONFIG)
    if options.full or not checkpoint.exists():  # both recipes are asked of the same weights
        randomize(model.named_parameters(), 10, spread)
        torch.save({"state_dict": {k: v.half() for k, v in model.state_dict().items()}}, checkpoint)
    img_score.model_dict.update(model=model, preprocess_val=preprocess)

    case: dict[str, Any] = {
        "reward": "hpsv2:v2.1" + ("" if antialias else "-no-antialias"),
        "recipe": f"hpsv2/{recipe}",
        "config": {} if options.full else CONFIG,
        "files": {"checkpoint": checkpoint.name if options.full else f"../_shared/hpsv2/{checkpoint.name}"},
        "oracle": {
            "name": "hpsv2 1.2.0, hpsv2/img_score.py",
            "commit": None,
            "environment": environment("torch", "torchvision", "pillow", "ftfy"),
            "dtype": "float32",
        },
        "tolerance": 1e-5,
    }
    if options.full:
        pairs = full(img_score, case, checkpoint)
    else:
        pairs = [ask(img_score, row, checkpoint) for row in read_pairs()]
    write_case(folder, case, pairs)


def full(img_score: Any, case: dict[str, Any], checkpoint: Path) -> list[dict[str, Any]]:
    """Score eight images and one prompt in one call, as upstream does for a list: one by one."""
    rows = group_of_eight()
    paths = [str(INPUTS / row["image"]) for row in rows]
    with measured(case):
        scores = img_score.score(paths, rows[0]["prompt"], cp=str(checkpoint))
    return [{**row, "score": float(score)} for row, score in zip(rows, scores, strict=True)]


if __name__ == "__main__":
    main()
