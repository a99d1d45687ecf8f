"""LAION's aesthetic ratings by its own script (christophschuhmann/improved-aesthetic-predictor, Apache-2.0,
6934dd81792f086e613a121dbce43082cb8be85e).

    git clone https://github.com/christophschuhmann/improved-aesthetic-predictor UPSTREAM
    git -C UPSTREAM checkout 6934dd81
    ENV/bin/python tests/parity/oracles/aesthetic.py --upstream UPSTREAM --out tests/parity/fixtures

ENV is the environment of clipscore.py. `simple_inference.py` runs as it stands, once an image, in a folder
that holds "test.jpg" and the weights by their name. Around it:
- `clip.load` gives a small network of OpenAI's `CLIP` with embeddings of 768, as the head wants them;
- `pytorch_lightning` (with `torch.nn.Module` as its module), `webdataset`, `datasets`,
  `pandas` and `matplotlib` are stubs;
- "cuda" is the CPU: `Module.to` and `torch.cuda.FloatTensor` are replaced;
- images that are not RGB are given as RGB ("converted"): upstream converts after the resize.
The head's weights are rounded to 16 bits and kept so, to save room.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import runpy
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from _clip import hub_names, open_image, row, spread
from _oracle import environment, mend_torchvision, randomize, read_pairs, write_case

COMMIT = "6934dd81792f086e613a121dbce43082cb8be85e"
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
NETWORK = {
    "embed_dim": 768,
    "image_resolution": 224,
    "vision_layers": 2,
    "vision_width": 64,
    "vision_patch_size": 32,
    "context_length": 77,
    "vocab_size": 16,
    "transformer_width": 8,
    "transformer_heads": 2,
    "transformer_layers": 1,
}
ON_THE_HUB = {
    "projection_dim": 768,
    "text_config": {
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "patch_size": 32,
    },
}


def stand_in() -> None:
    """Put stubs where upstream's script imports what it does not need."""
    import torch

    for name, members in (
        ("pytorch_lightning", {"LightningModule": torch.nn.Module}),
        ("webdataset", {}),
        ("datasets", {"load_dataset": None}),
        ("pandas", {}),
        ("matplotlib", {}),
        ("matplotlib.pyplot", {}),
    ):
        stub = types.ModuleType(name)
        vars(stub).update(members)
        sys.modules[name] = stub
    to = torch.nn.Module.to

    def to_cpu(self: Any, *places: Any, **options: Any) -> Any:
        return to(self, *("cpu" if place == "cuda" else place for place in places), **options)

    torch.nn.Module.to = to_cpu
    torch.cuda.FloatTensor = torch.FloatTensor


def make_head() -> dict[str, Any]:
    """Return random weights of the head, named as upstream names them."""
    import torch

    sizes, places = (768, 1024, 128, 64, 16, 1), (0, 2, 4, 6, 7)
    state = {}
    for place, width, out in zip(places, sizes, sizes[1:], strict=False):
        state[f"layers.{place}.weight"] = torch.empty(out, width)
        state[f"layers.{place}.bias"] = torch.empty(out)
    randomize(state.items(), 15, lambda _, weight: 3 * float(weight.shape[-1]) ** -0.5)
    state["layers.7.bias"] += 5
    return {key: weight.half() for key, weight in state.items()}


def main() -> None:
    """Write the checkpoints and the case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    mend_torchvision()
    import clip
    import torch
    from clip.clip import _transform
    from clip.model import CLIP
    from safetensors.torch import save_file

    script = options.upstream.resolve() / "simple_inference.py"
    folder = options.out.resolve() / "aesthetic"
    folder.mkdir(parents=True, exist_ok=True)
    net = CLIP(**NETWORK).eval()
    randomize(net.named_parameters(), 16, spread)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(weight.half())
    save_file({k: w.half() for k, w in hub_names(net.state_dict()).items()}, folder / "clip.safetensors")
    (folder / "clip.safetensors").chmod(0o644)
    torch.save(make_head(), folder / HEAD)

    stand_in()
    clip.load = lambda *_, **__: (net, _transform(224))
    ratings: dict[str, float] = {}
    pairs = []
    with tempfile.TemporaryDirectory() as workplace:
        os.chdir(workplace)
        torch.save(torch.load(folder / HEAD), HEAD)
        for pair in read_pairs():
            image, converted = open_image(pair["image"])
            if pair["image"] not in ratings:
                image.save("test.jpg", format="PNG")
                with contextlib.redirect_stdout(io.StringIO()):
                    result = runpy.run_path(str(script))
                ratings[pair["image"]] = float(result["prediction"])
            pairs.append(row(**pair, score=ratings[pair["image"]], converted=converted))
    case = {
        "reward": "aesthetic:v2",
        "recipe": "aesthetic/v2",
        "config": ON_THE_HUB,
        "files": {"checkpoint": HEAD, "clip": "clip.safetensors"},
        "oracle": {
            "name": "improved-aesthetic-predictor, simple_inference.py",
            "commit": COMMIT,
            "environment": environment("torch", "torchvision", "openai-clip", "pillow"),
            "dtype": "float32",
        },
        "tolerance": 1e-5,
    }
    write_case(folder, case, pairs)


if __name__ == "__main__":
    main()
