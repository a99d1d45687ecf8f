"""The GIT reward's scores by T2I-R1's own code (CaraJ7/T2I-R1, Apache-2.0).

    git clone https://github.com/CaraJ7/T2I-R1
    git -C T2I-R1 checkout 2d9d4d1af4119953b3a8541f914f85481d7e1e76
    python -m venv ENV && ENV/bin/pip install -r tests/parity/oracles/requirements/gitvqa.txt
    ENV/bin/python tests/parity/oracles/gitvqa.py --upstream T2I-R1 --out tests/parity/fixtures

Upstream's class `GIT` (src/t2i-r1/src/utils/reward_git.py) loads a folder and scores, as it is. The folder
holds a small GIT of `transformers` with random weights, CLIP's image processor at its size and BERT's
tokenizer with a vocabulary of our own: the kinds of `microsoft/git-large-vqav2`.

An image one or three pixels high is taken for one whose first dimension is its channels, and fails or is
misread. Such images are given resized by the processor's own rule, and its resize finds nothing left to do
("converted").

Upstream takes `task_type`, `nouns` and `attr_nouns` from its training data. Here the shared prompts' parts
between commas are the nouns, in turn with attributes and without. Where the data has neither, upstream
scores 1, and where a list of attributes is empty it scores NaN: we refuse both.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

from _bert_vocabulary import vocabulary
from _oracle import INPUTS, environment, randomize, read_pairs, write_case

COMMIT = "2d9d4d1af4119953b3a8541f914f85481d7e1e76"
VISION = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 256,
}
MOST = 16
TASKS = ("color", "shape", "texture", "complex", "non", "object")
EXTRA: tuple[tuple[str, dict[str, Any], str | None], ...] = (
    ("square.png", {"task_type": "spatial", "nouns": ["cat", "dog"]}, None),
    ("photo.jpg", {"task_type": "numeracy", "attr_nouns": ["two cats"], "nouns": ["cat"]}, None),
    ("wide.png", {"task_type": "object", "nouns": []}, None),
    ("tall.png", {"task_type": "color", "attr_nouns": ["a red cat", "a red cat", "A Blue DOG!?"]}, None),
    ("odd.png", {"task_type": "color", "attr_nouns": ["[SEP] cat [MASK]", "[CLS]", "[sep]"]}, None),
    (
        "grey.png",
        {"task_type": "color", "attr_nouns": ["x" * 101, "tab\there\x07", "no\u00a0break \u3000 wide"]},
        None,
    ),
    ("large.png", {"attr_nouns": ["a house"], "nouns": ["not asked"]}, None),
    ("rgba.png", {"task_type": "color", "attr_nouns": []}, '"attr_nouns"] is empty'),
    ("dot.png", {"task_type": "color"}, "give what to ask for"),
)


def rows() -> list[tuple[str, str, dict[str, Any], str | None]]:
    """Return images, prompts, metadata and what our message has where we refuse."""
    found: list[tuple[str, str, dict[str, Any], str | None]] = []
    for i, row in enumerate(read_pairs()):
        parts = [part.strip(" ") for part in row["prompt"].split(",") if part.strip()][:MOST]
        key = "attr_nouns" if parts and i % 3 else "nouns"
        metadata = {key: parts, "task_type": TASKS[i % len(TASKS)]}
        found.append((row["image"], row["prompt"], metadata, None))
    return [*found, *((image, "a prompt is not read", metadata, error) for image, metadata, error in EXTRA)]


def main() -> None:
    """Write the checkpoint, the vocabulary and the case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of T2I-R1")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    source = options.upstream / "src/t2i-r1/src/utils/reward_git.py"
    spec = importlib.util.spec_from_file_location("reward_git", source)
    assert spec is not None
    assert spec.loader is not None
    upstream = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(upstream)
    folder = options.out / "gitvqa"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as workplace:
        draw(Path(workplace), folder / "vocab.txt")
        (folder / "pytorch_model.bin").write_bytes((Path(workplace) / "pytorch_model.bin").read_bytes())
        reward = upstream.GIT(types.SimpleNamespace(git_ckpt_path=workplace))
        reward.load_to_device("cpu")
        pairs = [ask(reward, *row) for row in rows()]
    case = {
        "reward": "gitvqa:t2i-r1",
        "recipe": "gitvqa/t2i-r1",
        "config": {"vision": VISION, "text": {**TEXT, "vocab_size": len(vocabulary())}},
        "files": {"checkpoint": "pytorch_model.bin", "vocabulary": "vocab.txt"},
        "oracle": {
            "name": "T2I-R1, src/t2i-r1/src/utils/reward_git.py",
            "commit": COMMIT,
            "environment": environment("torch", "transformers", "tokenizers", "pillow"),
            "dtype": "float32",
        },
        "tolerance": 1e-5,
    }
    write_case(folder, case, pairs)


def draw(folder: Path, vocab_file: Path) -> None:
    """Write a small model of random weights, its image processor and its tokenizer."""
    import torch
    from transformers import BertTokenizerFast, CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    config = GitConfig(vision_config=VISION, vocab_size=len(vocabulary()), **TEXT)
    net = GitForCausalLM(config)
    randomize(net.named_parameters(), 9, spread)
    config.save_pretrained(folder)
    state = dict(net.state_dict())
    # Files as old as the released one hold these two as well.
    state["git.embeddings.position_ids"] = net.git.embeddings.position_ids
    vision = "git.image_encoder.vision_model.embeddings"
    state[f"{vision}.position_ids"] = net.get_submodule(vision).position_ids
    torch.save(state, folder / "pytorch_model.bin")
    size = VISION["image_size"]
    images = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    GitProcessor(images, BertTokenizerFast(str(vocab_file))).save_pretrained(folder)


def spread(name: str, weight: Any) -> float:
    """Return a standard deviation at which answers differ well between pairs."""
    if weight.ndim < 2:
        return 0.1
    if "embed" in name:
        return 0.5
    return float(1.2 * weight[0].numel() ** -0.5)


def ask(reward: Any, image: str, prompt: str, metadata: dict[str, Any], error: str | None) -> dict[str, Any]:
    """Return the pair with upstream's score, and its answer to each phrase alone among the details."""
    pair: dict[str, Any] = {"image": image, "prompt": prompt, "metadata": metadata}
    given, converted = picture(image)
    if converted:
        pair["converted"] = True

    def score(row: dict[str, Any]) -> float:
        columns = {key: [row.get(key)] for key in ("task_type", "nouns", "attr_nouns")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the mean of nothing
            (value,) = reward([prompt], [given], **columns)
        return float(value)

    value = score(metadata)
    if error is not None:
        assert math.isnan(value) or value == 1
        return {**pair, "score": None, "error": error}
    asked = metadata.get("attr_nouns") or metadata["nouns"]
    if metadata.get("task_type") in ("spatial", "numeracy"):
        asked = []
    answers = {phrase: score({"attr_nouns": [phrase]}) for phrase in asked}
    return {**pair, "score": value, "details": {"questions": answers}, "error": None}


def picture(name: str) -> tuple[Any, bool]:
    """Return the image for upstream, and whether it had to be resized first."""
    from PIL import Image

    image = Image.open(INPUTS / name)
    if image.height not in (1, 3):
        return image, False
    size = VISION["image_size"]
    width = size if image.width <= image.height else int(size * image.width / image.height)
    height = size if image.width > image.height else int(size * image.height / image.width)
    return image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), True


if __name__ == "__main__":
    main()
