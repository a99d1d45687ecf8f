"""BLIP-VQA's scores by T2I-CompBench's own code (Karine-Huang/T2I-CompBench, MIT; its BLIP is BSD-3-Clause).

    git clone https://github.com/Karine-Huang/T2I-CompBench
    git -C T2I-CompBench checkout 1b7094991a57f3c22abdd4f6e8ba6c1a15517073
    python -m venv ENV && ENV/bin/pip install -r tests/parity/oracles/requirements/blipvqa.txt
    ENV/bin/python tests/parity/oracles/blipvqa.py --upstream T2I-CompBench --out tests/parity/fixtures

Upstream's `BLIPvqa_eval/BLIP_vqa.py` runs from its `main` to the files it writes. Around it:
- "cuda", which is written into it, means the CPU; `torch._six`, which timm 0.4.12 imports, is put back;
- its `VisionTransformer` gets small widths through `create_vit`, which knows base and large only, and
  `configs/` is a small one. `bert-base-uncased` is a folder of that name with a vocabulary of our own;
- spaCy is a stand-in whose noun chunks are recorded here (`chunks`): its model cannot be had where fixtures
  are made. Upstream's own list of phrases not to ask, and its limit of eight, work on them; the metadata of
  a pair are the phrases that upstream then asked for;
- upstream takes prompts from the names of files, so rows have numbers for names and prompts are looked up;
- the rounded case has the scores of upstream's final JSON. The other has the answers that `vqa_prob`
  returned before they were formatted, and their product in float32.

The rounded case's checkpoint has position embeddings of another size: upstream resizes them as it loads.
"""

from __future__ import annotations

import argparse
import collections.abc
import json
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bert_vocabulary import vocabulary
from _oracle import INPUTS, environment, mend_torchvision, randomize, read_pairs, write_case

COMMIT = "1b7094991a57f3c22abdd4f6e8ba6c1a15517073"
SIZE, PATCH, WIDTH, LAYERS, HEADS = 64, 16, 32, 2, 4
OTHER_SIZE = 48
MED = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 48,
}
PHRASES = 8
EXTRA = (
    ("square.png", ["a cat", "the left", "a dog", "top"]),
    ("photo.jpg", ["a red house", "a red house", "THE LEFT", "the side"]),
    (
        "wide.png",
        [f"a {word} {thing}" for word in ("red", "blue", "old") for thing in ("cat", "sea", "star")],
    ),
    ("rgba.png", ["(!!!)", "a  double   space", "trailing punctuation.!"]),
    ("odd.png", [" ".join(["word"] * 60)]),
    ("grey.png", ["[SEP] [sep] [CLS] [MASK]", "[ENC] [DEC]"]),
)


def chunks(prompt: str) -> list[str]:
    """Return the recorded noun chunks of a shared prompt: its parts between commas."""
    return [part.strip(" ") for part in prompt.split(",") if part.strip()]


def rows() -> list[tuple[str, str, list[str]]]:
    """Return images, prompts and what spaCy is to find in them."""
    shared = [(row["image"], row["prompt"], chunks(row["prompt"])) for row in read_pairs()]
    return [*shared, *((image, ", ".join(found), found) for image, found in EXTRA)]


def main() -> None:
    """Write the checkpoints, the vocabulary and both cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of T2I-CompBench")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    folder = (options.out / "blipvqa").resolve()
    rounded = (options.out / "blipvqa-rounded").resolve()
    for path in (folder, rounded):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")

    upstream = import_upstream(options.upstream.resolve() / "BLIPvqa_eval")
    with tempfile.TemporaryDirectory() as workplace:
        prepare(options.upstream.resolve() / "BLIPvqa_eval", Path(workplace), folder / "vocab.txt")
        os.chdir(workplace)  # "bert-base-uncased" and "configs" are in it
        draw(folder / "model.pth", SIZE)
        draw(rounded / "model.pth", OTHER_SIZE)
        exact, _ = run(upstream, folder / "model.pth")
        _, printed = run(upstream, rounded / "model.pth")
    write(folder, "t2i-compbench", "vocab.txt", exact)
    write(rounded, "t2i-compbench-rounded", "../blipvqa/vocab.txt", printed)


def import_upstream(source: Path) -> Any:
    """Return upstream's script as a module, and let it run on a CPU and at small widths."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(source), *(path for path in sys.path if Path(path).resolve() != here)]
    mend_torchvision()
    import torch
    import transformers  # noqa: F401  # it looks for spaCy: before the stand-in is there

    sys.modules["torch._six"] = types.SimpleNamespace(container_abcs=collections.abc)  # type: ignore[assignment]
    sys.modules["spacy"] = types.SimpleNamespace(load=lambda name: find_chunks)  # type: ignore[assignment]
    for owner in (torch.Tensor, torch.nn.Module):
        owner.to = on_cpu(owner.to)  # type: ignore[method-assign]

    import BLIP_vqa
    from models import blip_vqa
    from models.vit import VisionTransformer

    def create_vit(name: str, image_size: int, *rest: Any, **more: Any) -> tuple[Any, int]:
        net = VisionTransformer(
            img_size=image_size, patch_size=PATCH, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS
        )
        return net, WIDTH

    blip_vqa.create_vit = create_vit
    return BLIP_vqa


def on_cpu(move: Callable[..., Any]) -> Callable[..., Any]:
    """Return `Tensor.to` or `Module.to` with the CPU in the place of any GPU."""
    import torch

    def here(value: Any) -> Any:
        is_gpu = value == "cuda" or (isinstance(value, torch.device) and value.type == "cuda")
        return torch.device("cpu") if is_gpu else value

    def moved(self: Any, *args: Any, **kwargs: Any) -> Any:
        return move(self, *map(here, args), **{key: here(value) for key, value in kwargs.items()})

    return moved


def find_chunks(name: str) -> Any:
    """Stand in for spaCy's pipeline: `name` is that of a file, a row's number."""
    _, _, found = rows()[int(name.removeprefix("row"))]
    return types.SimpleNamespace(noun_chunks=[types.SimpleNamespace(text=text) for text in found])


def prepare(source: Path, workplace: Path, vocab_file: Path) -> None:
    """Write the small configuration, the tokenizer and the pictures."""
    (workplace / "configs").mkdir()
    med = json.loads((source / "configs/med_config.json").read_text())
    (workplace / "configs/med_config.json").write_text(json.dumps({**med, **MED, "encoder_width": WIDTH}))
    (workplace / "bert-base-uncased").mkdir()
    shutil.copy(vocab_file, workplace / "bert-base-uncased/vocab.txt")
    shutil.copy(source / "configs/vqa.yaml", workplace / "configs/vqa.yaml")
    (workplace / "out/samples").mkdir(parents=True)
    for i, (image, _, _) in enumerate(rows()):
        shutil.copy(INPUTS / image, workplace / f"out/samples/row{i}_{i}.png")


def draw(checkpoint: Path, size: int) -> None:
    """Write random weights in upstream's format, in half precision to be small.

    The ids of the decoder's first token and of the answers are written into upstream's code, so the word
    embeddings have all their rows. In the file rows overlap: each is a window of one random line.
    """
    import torch
    from models.blip_vqa import BLIP_VQA

    net = BLIP_VQA(image_size=size)
    randomize(net.named_parameters(), 7, spread)
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in net.state_dict().items()
    }
    generator = torch.Generator().manual_seed(8)
    for name in ("text_encoder.embeddings", "text_decoder.bert.embeddings"):
        key = f"{name}.word_embeddings.weight"
        count, width = state[key].shape
        line = torch.randn(count + width, generator=generator).mul(0.3).half()
        state[key] = line.as_strided((count, width), (1, 1))
    tied = "text_decoder.cls.predictions."
    state[f"{tied}decoder.weight"] = state["text_decoder.bert.embeddings.word_embeddings.weight"]
    state[f"{tied}decoder.bias"] = state[f"{tied}bias"]
    torch.save({"model": state}, checkpoint)


def spread(name: str, weight: Any) -> float:
    """Return a standard deviation at which answers differ well between pairs."""
    if weight.ndim < 2:
        return 0.1
    if "embed" in name or "token" in name:
        return 0.5
    return float(weight[0].numel() ** -0.5)


def run(upstream: Any, checkpoint: Path) -> tuple[list[Any], list[Any]]:
    """Run upstream's `main`; return (score, answers by phrase, phrases) a row: exact ones, and as written."""
    import torch
    from models.blip_vqa import BLIP_VQA

    config = Path("configs/vqa.yaml")
    lines = config.read_text().splitlines()
    changed = {"pretrained": repr(str(checkpoint)), "image_size": str(SIZE)}
    config.write_text(
        "\n".join(
            f"{key}: {changed[key]}" if (key := line.partition(":")[0]) in changed else line for line in lines
        )
    )
    seen: list[Any] = []
    vqa_prob = BLIP_VQA.vqa_prob

    def noted(self: Any, *args: Any) -> Any:
        seen.append(vqa_prob(self, *args))
        return seen[-1]

    BLIP_VQA.vqa_prob = noted
    sys.argv = ["BLIP_vqa.py", "--out_dir=out", f"--np_num={PHRASES}"]
    try:
        upstream.main()
    finally:
        BLIP_VQA.vqa_prob = vqa_prob

    count = len(rows())
    answers = torch.cat(seen).reshape(PHRASES, count).T
    final = json.loads(Path("out/annotation_blip/vqa_result.json").read_text())
    exact, printed = [], []
    for i in range(count):
        phrases, texts = [], []
        for k in range(PHRASES):
            at = Path(f"out/annotation{k + 1}_blip")
            asked = json.loads((at / "vqa_test.json").read_text())[i]["question"]
            if asked:
                phrases.append(asked.removesuffix("?"))
                texts.append(json.loads((at / "VQA/result/vqa_result.json").read_text())[i]["answer"])
        probabilities = answers[i, : len(phrases)]
        exact.append(
            (probabilities.prod().item(), dict(zip(phrases, probabilities.tolist(), strict=True)), phrases)
        )
        printed.append(
            (float(final[i]["answer"]), dict(zip(phrases, map(float, texts), strict=True)), phrases)
        )
    return exact, printed


def write(folder: Path, variant: str, vocab_file: str, found: list[Any]) -> None:
    """Write a case."""
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "patch_size": PATCH,
        "image_size": SIZE,
    }
    case = {
        "reward": f"blipvqa:{variant}",
        "recipe": f"blipvqa/{variant}",
        "config": {"vision": vision, "text": {**MED, "encoder_hidden_size": WIDTH}},
        "files": {"checkpoint": "model.pth", "vocabulary": vocab_file},
        "oracle": {
            "name": "T2I-CompBench, BLIPvqa_eval/BLIP_vqa.py",
            "commit": COMMIT,
            "environment": environment("torch", "torchvision", "transformers", "timm", "pillow"),
            "dtype": "float32",
        },
        "tolerance": 1e-5,
    }
    pairs = [
        {
            "image": image,
            "prompt": prompt,
            "metadata": {"noun_phrases": phrases},
            "score": score,
            "details": {"questions": answers},
            "error": None,
        }
        for (image, prompt, _), (score, answers, phrases) in zip(rows(), found, strict=True)
    ]
    write_case(folder, case, pairs)


if __name__ == "__main__":
    main()
