r"""VQAScore by LLaVA-OneVision in upstream's own code: linzhiqiu/t2v_metrics on LLaVA-NeXT (both Apache-2.0).

    git clone https://github.com/linzhiqiu/t2v_metrics T2V
    git -C T2V checkout 10d549b369861aab49e7dbe9f33a469a17ef1129
    git clone https://github.com/LLaVA-VL/LLaVA-NeXT LLAVA
    git -C LLAVA checkout df179663ae8b83207df100a1f7af24caec633ff9
    ENV/bin/python tests/parity/oracles/vqascore_llava.py --upstream T2V --llava LLAVA \
        --out tests/parity/fixtures

ENV has requirements/llava-next.txt. `_llava_next.py` says what around upstream's code is ours; besides, the
packages above `llavaov_model` are empty, and `cv2` and `decord`, which read videos, are stubs.

Two cases of one small checkpoint, whose configuration has few tiles, so that the cases stay quick:
- `vqascore/llava-onevision-frames`: upstream's `LLaVAOneVisionModel.forward` as it is. It takes an image of
  several tiles for a video: each tile becomes a frame, pooled two by two.
- `vqascore/llava-onevision`: upstream's question, tokens, pixels and model, but `generate` is called as
  LLaVA-NeXT's own examples do for an image: modality "image", and the image's size.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _llava_next import CONFIG, add_upstream, run_in_full_precision, write_checkpoint
from _oracle import INPUTS, environment, read_pairs, write_case

COMMIT = "10d549b369861aab49e7dbe9f33a469a17ef1129; LLaVA-NeXT df179663ae8b83207df100a1f7af24caec633ff9"
SETTINGS = {
    "image_aspect_ratio": "anyres_max_2",
    "image_grid_pinpoints": [[384, 384], [384, 768], [768, 384], [768, 768], [1152, 384]],  # width, height
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": 2,
}
OPTIONS = (
    {"question": "Is there {} in the picture?"},
    {"question": 'Does this show "{}"?', "answer": "No"},
    {"answer": "yes"},
)


def import_upstream(checkout: Path) -> Any:
    """Return upstream's module `llavaov_model`, without what its packages import beside it."""
    import transformers  # noqa: F401  it looks for cv2 and decord before the stubs are there

    for name in ("t2v_metrics", "t2v_metrics.models", "t2v_metrics.models.vqascore_models"):
        module = types.ModuleType(name)
        module.__path__ = [str(checkout.joinpath(*name.split(".")))]
        sys.modules[name] = module
    sys.modules["cv2"] = types.ModuleType("cv2")
    decord = types.ModuleType("decord")
    decord.VideoReader = decord.cpu = None
    sys.modules["decord"] = decord
    from t2v_metrics.models.vqascore_models import llavaov_model

    return llavaov_model


def as_image(upstream: Any, scorer: Any) -> Callable[..., float]:
    """Return a function that scores with the image told to be an image."""
    import torch
    from PIL import Image

    def score(
        path: Path, prompt: str, question_template: str | None = None, answer_template: str = "Yes"
    ) -> float:
        defaults = scorer.forward.__func__.__defaults__
        question = (question_template or defaults[1]).format(prompt)
        (pixels,) = scorer.load_images([str(path)])
        ids = upstream.tokenizer_image_token(
            scorer.format_question(question),
            scorer.tokenizer,
            upstream.IMAGE_TOKEN_INDEX,
            return_tensors="pt",
        )
        returned = scorer.model.generate(
            ids[None],
            images=[pixels],
            image_sizes=[Image.open(path).size],
            do_sample=False,
            temperature=0,
            max_new_tokens=1,
            modalities=["image"],
            output_scores=True,
            return_dict_in_generate=True,
        )
        answer = scorer.tokenizer.encode(answer_template)[0]
        return float(torch.softmax(returned.scores[0], -1)[0, answer])

    return score


def main() -> None:
    """Write the checkpoint and both cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", type=Path, required=True)
    parser.add_argument("--llava", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    add_upstream(options.llava)
    upstream = import_upstream(options.upstream)
    import torch

    torch.set_num_threads(1)
    checkpoint = options.out / "_shared" / "vqascore-llava-onevision"
    shutil.rmtree(checkpoint, ignore_errors=True)
    run_in_full_precision(upstream)
    write_checkpoint(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text()) | SETTINGS
    (checkpoint / "config.json").write_text(json.dumps(config, indent=1))
    known = upstream.LLAVA_OV_MODELS["llava-onevision-qwen2-7b-ov"]
    known["tokenizer"]["path"] = known["model"]["path"] = str(checkpoint)
    scorer = upstream.LLaVAOneVisionModel(device="cpu")
    by_tile = as_image(upstream, scorer)

    def by_frame(path: Path, prompt: str, **given: str) -> float:
        return float(scorer.forward([str(path)], [prompt], **given)[0])

    rows = [{**row, "metadata": {}} for row in read_pairs()]
    rows += [{**row, "metadata": extra} for row, extra in zip(rows[2:], OPTIONS, strict=False)]
    for suffix, ask in (("", by_tile), ("-frames", by_frame)):
        pairs = []
        for row in rows:
            given = {f"{name}_template": text for name, text in row["metadata"].items()}
            score = ask(INPUTS / row["image"], row["prompt"], **given)
            pairs.append({**row, "score": score, "details": {}, "error": None})
        case = {
            "reward": f"vqascore:llava-onevision-7b{suffix}",
            "recipe": f"vqascore/llava-onevision{suffix}",
            "config": CONFIG,
            "files": {"checkpoint": f"../_shared/{checkpoint.name}"},
            "oracle": {
                "name": "t2v_metrics, llavaov_model.py",
                "commit": COMMIT,
                "environment": environment("torch", "transformers", "pillow"),
                "dtype": "float32",
            },
            "tolerance": 1e-5,
        }
        write_case(options.out / f"vqascore-llava-onevision{suffix}", case, pairs)


if __name__ == "__main__":
    main()
