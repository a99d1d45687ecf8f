"""MPS's scores by its own code (Kwai-Kolors/MPS, MIT, be9027f3e9097a4a8b1e0be5991d0096aa8abc4b).

    git clone https://github.com/Kwai-Kolors/MPS UPSTREAM && git -C UPSTREAM checkout be9027f3
    python -m venv ENV && ENV/bin/pip install -r tests/parity/oracles/requirements/clip-transformers.txt
    ENV/bin/python tests/parity/oracles/mps.py --upstream UPSTREAM --out tests/parity/fixtures

The small model is made of upstream's `XCLIPModel` and `Cross_model` at other widths, which its own
`CLIPModel.__init__` has written in, and pickled whole as upstream's checkpoint is.
- mps-v1, threshold 0.01: `CLIPModel.forward`, one pair at a time with the image given twice as it wants two,
  and the formula of the README, whose code cannot be imported.
- mps-eval, threshold 0.3: `infer_one_sample` of `eval_overall_mps_on_hpdv2.py` as it stands. The checkpoint
  of this case is a state dict with the names of the copy on the hub (RE-N-Y/mpsv1).
Around it: `Tensor.half` gives back float32, in which the scores are compared; cv2, fire, tqdm and matplotlib
are stubs; the processor is `transformers` 4.27.3's with the shared small tokenizer; the image of one pixel,
which that processor takes for channels, is given as a plain 224 x 224 ("converted").
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from _clip import TINY, open_image, row, spread, with_activation, write_processor
from _oracle import environment, randomize, read_pairs, write_case

COMMIT = "be9027f3e9097a4a8b1e0be5991d0096aa8abc4b"
CROSS = {"layers": 2, "heads": 3, "head_width": 8}
CONDITIONS = (
    ("square.png", "a red circle left of a blue square", "light, color, clarity"),
    ("large.png", "an astronaut riding a horse on the moon", "shape, face, hair, hands, limbs, structure"),
    ("photo.jpg", "a sunset over the sea, golden hour", "quantity"),
)
"""Pairs with a condition of their own."""


def import_upstream(checkout: Path) -> tuple[Any, Any]:
    """Return upstream's model module and its evaluation script."""
    for name, member in (("cv2", None), ("fire", "Fire"), ("matplotlib", None), ("matplotlib.pyplot", None)):
        stub = types.ModuleType(name)
        if member:
            setattr(stub, member, None)
        sys.modules[name] = stub
    sys.path.insert(0, str(checkout))
    import eval_overall_mps_on_hpdv2 as evaluation
    from trainer.models import clip_model

    return clip_model, evaluation


def make_model(clip_model: Any, config: dict[str, Any]) -> Any:
    """Return upstream's model, small and random."""
    import torch
    from transformers import CLIPConfig

    model = clip_model.CLIPModel.__new__(clip_model.CLIPModel)
    torch.nn.Module.__init__(model)
    model.model = clip_model.XCLIPModel(CLIPConfig(**config))
    model.cross_model = clip_model.Cross_model(
        dim=config["projection_dim"],
        layer_num=CROSS["layers"],
        heads=CROSS["heads"],
        dim_head=CROSS["head_width"],
    )
    randomize(model.named_parameters(), 12, spread)
    with torch.no_grad():
        model.model.logit_scale.fill_(2.7)
    tell_apart(model.model)
    return model.eval()


def tell_apart(clip: Any) -> None:
    """Let tokens differ in likeness to a condition, so that either threshold hides some of them.

    Tokens lie along one line, near and far from its middle, with a little noise. Images lean to one side
    of that line, which keeps scores away from zero, where a relative difference means nothing.
    """
    import torch

    generator = torch.Generator().manual_seed(3)
    width, inner = clip.text_projection.weight.shape
    line = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    place = torch.nn.functional.normalize(torch.randn(inner, generator=generator), dim=0)
    pixels = torch.randn(8, 3, 224, 224, generator=generator)
    with torch.no_grad():
        clip.text_projection.weight.mul_(0.08).add_(torch.outer(line, place))
        image = clip.vision_model(pixels).last_hidden_state[:, 0].mean(0)
        clip.visual_projection.weight += 6 * torch.outer(line, image) / image.square().sum()


def main() -> None:
    """Write the checkpoints and the two cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]

    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, CLIPImageProcessor

    clip_model, evaluation = import_upstream(options.upstream.resolve())
    torch.Tensor.half = torch.Tensor.float  # type: ignore[method-assign]
    config = with_activation(TINY, "gelu")
    model = make_model(clip_model, config)
    with tempfile.TemporaryDirectory() as workplace:
        write_processor(Path(workplace))
        processor = CLIPImageProcessor.from_pretrained(workplace)
        tokenizer = AutoTokenizer.from_pretrained(workplace)

    def readme(image: Any, prompt: str, condition: str) -> float:
        def ids(text: str) -> Any:
            length = tokenizer.model_max_length
            return tokenizer(
                text, max_length=length, padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids

        pixels = processor(image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            text, first, _ = model(ids(prompt), torch.cat([pixels, pixels]), ids(condition))
            text, first = (x / x.norm(dim=-1, keepdim=True) for x in (text, first))
            return float(model.logit_scale.exp() * torch.einsum("bd,cd->bc", text, first)[0, 0])

    def evaluated(image: Any, prompt: str, condition: str | None) -> float:
        return float(
            evaluation.infer_one_sample(image, prompt, model, processor, tokenizer, "cpu", condition)
        )

    words = (
        "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, "
        "instance, texture, quantity, attributes, position, number, location, word, things."
    )
    asked = [(pair["image"], pair["prompt"], None) for pair in read_pairs()] + list(CONDITIONS)
    out = options.out.resolve()
    for name, recipe, reward in (("mps-v1", "mps/v1", "mps:v1"), ("mps-eval", "mps/eval", "mps:v1-eval")):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        pairs = []
        for image_name, prompt, condition in asked:
            image, converted = open_image(image_name, least=4)
            if recipe == "mps/v1":
                score = readme(image, prompt, condition or words)
            else:
                score = evaluated(image, prompt, condition)
            metadata = {"condition": condition} if condition else {}
            pairs.append(row(image_name, prompt, score, converted=converted, metadata=metadata))
        if recipe == "mps/v1":
            checkpoint = "MPS_overall_checkpoint.pth"
            torch.save(model, folder / checkpoint)
        else:
            checkpoint = "model.safetensors"
            state = {f"mps.{k}": v.clone().contiguous() for k, v in model.state_dict().items()}
            save_file(state, folder / checkpoint)
            (folder / checkpoint).chmod(0o644)
        case = {
            "reward": reward,
            "recipe": recipe,
            "config": {**config, "cross": CROSS},
            "files": {
                "checkpoint": checkpoint,
                "tokenizer": "../_shared/clip_tokenizer/tokenizer.json",
            },
            "oracle": {
                "name": "Kwai-Kolors/MPS, trainer/models"
                if recipe == "mps/v1"
                else "Kwai-Kolors/MPS, eval_overall_mps_on_hpdv2.py",
                "commit": COMMIT,
                "environment": environment("torch", "transformers", "tokenizers", "pillow"),
                "dtype": "float32",
            },
            "tolerance": 1e-5,
        }
        write_case(folder, case, pairs)


if __name__ == "__main__":
    main()
