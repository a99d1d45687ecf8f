"""PickScore's scores by the code in its own README: yuvalkirstain/PickScore (MIT) at
f79607ff68609c1e6dfa78cba38afeea4c248df1.

    git clone https://github.com/yuvalkirstain/PickScore UPSTREAM && git -C UPSTREAM checkout f79607ff
    python -m venv ENV && ENV/bin/pip install -r tests/parity/oracles/requirements/clip-transformers.txt
    ENV/bin/python tests/parity/oracles/pickscore.py --upstream UPSTREAM --out tests/parity/fixtures [--full]

Upstream's inference is the block of code under "Inference with PickScore" in its README, for the
`transformers` 4.27.3 that it pins. The block is run as it stands in a folder that holds the model and the
processor by their names on the hub, and the two pictures that it opens. Around it:
- "cuda" reads "cpu";
- its `torch.softmax` gives back what it is given, so that `calc_probs` returns scores;
- images that are not RGB are converted, as `transformers` does itself; the image of one pixel, which its
  processor takes for channels, is given as a plain 224 x 224 ("converted").
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from _clip import TINY, lean, open_image, row, spread, with_activation, write_processor
from _oracle import environment, group_of_eight, measured, randomize, read_pairs, write_case

MODEL = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
COMMIT = "f79607ff68609c1e6dfa78cba38afeea4c248df1"
FULL: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
}


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """Write a model with random weights as the hub has it."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    model = CLIPModel(CLIPConfig(**config))
    randomize(model.named_parameters(), 11, spread)
    with torch.no_grad():
        model.logit_scale.fill_(2.9)
    norms = model.vision_model.post_layernorm.bias, model.text_model.final_layer_norm.bias
    lean(model.visual_projection.weight, model.text_projection.weight, *norms)
    model.save_pretrained(folder, safe_serialization=True)


def upstream_scores(checkout: Path) -> Any:
    """Run the README's block here; return its `calc_probs`, which returns scores."""
    import torch

    blocks = re.findall(r"```python\n(.*?)```", (checkout / "README.md").read_text(encoding="utf-8"), re.S)
    (block,) = [block for block in blocks if "def calc_probs" in block]
    stand_in = SimpleNamespace(**{**vars(torch), "softmax": lambda scores, dim: scores})
    source = block.replace('device = "cuda"', 'device = "cpu"').replace("import torch\n", "")
    names: dict[str, Any] = {"torch": stand_in, "__name__": "upstream"}
    exec(compile(source, "README.md", "exec"), names)
    return names["calc_probs"]


def main() -> None:
    """Write the checkpoint and the case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--full", action="store_true", help="ViT-H/14, a batch of eight, measured")
    options = parser.parse_args()
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]

    checkout = options.upstream.resolve()
    folder = (options.out / ("pickscore-full" if options.full else "pickscore")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = with_activation(FULL if options.full else TINY, "gelu")
    case: dict[str, Any] = {
        "reward": "pickscore:v1",
        "recipe": "pickscore/v1",
        "config": config,
        "files": {
            "checkpoint": "model.safetensors",
            "tokenizer": "../_shared/clip_tokenizer/tokenizer.json",
        },
        "oracle": {
            "name": "PickScore's README with transformers 4.27.3",
            "commit": COMMIT,
            "environment": environment("torch", "transformers", "tokenizers", "pillow"),
            "dtype": "float32",
        },
        "tolerance": 1e-5,
    }
    with tempfile.TemporaryDirectory(dir=folder.parent if options.full else None) as workplace:
        os.chdir(workplace)
        write_model(Path(MODEL), config)
        write_processor(Path(PROCESSOR))
        Path("my_amazing_images").mkdir()
        for i in (1, 2):
            open_image("square.png")[0].save(f"my_amazing_images/{i}.jpg")
        scores = upstream_scores(checkout)
        if options.full:
            eight = group_of_eight()
            images = [open_image(pair["image"])[0] for pair in eight]
            with measured(case):
                found = scores(eight[0]["prompt"], images)
            pairs = [
                row(**pair, score=score, converted=False) for pair, score in zip(eight, found, strict=True)
            ]
        else:
            pairs = []
            for pair in read_pairs():
                image, converted = open_image(pair["image"], least=4)
                (score,) = scores(pair["prompt"], [image])
                pairs.append(row(**pair, score=score, converted=converted))
        shutil.copyfile(Path(MODEL) / "model.safetensors", folder / "model.safetensors")
    if options.full:  # the shared tokenizer, wherever the case lies
        shutil.copy(Path(__file__).parent.parent / "fixtures/_shared/clip_tokenizer/tokenizer.json", folder)
        case["files"]["tokenizer"] = "tokenizer.json"
    write_case(folder, case, pairs)


if __name__ == "__main__":
    main()
