r"""UnifiedReward on LLaVA-NeXT's model in upstream's own script, and as flow_grpo asks it.

    git clone https://github.com/CodeGoat24/UnifiedReward UPSTREAM  (MIT)
    git -C UPSTREAM checkout ff6f520247a2d36e2aff7b2ba53a935afd437f66
    git clone https://github.com/yifan123/flow_grpo FLOW  (MIT)
    git -C FLOW checkout ac4c86e8cae021841f1fde853d340e0db67690dd
    ENV/bin/python tests/parity/oracles/unifiedreward_llava.py --upstream UPSTREAM --flow-grpo FLOW \
        --out tests/parity/fixtures

ENV has requirements/llava-next.txt. `_llava_next.py` says what around upstream's code is ours; `llava` is
upstream's own copy of LLaVA-NeXT. The small model is that of `_llava_next.py` with few tiles, and with its
embeddings laid out so that it writes words, of which some stand in the prompts, and then a score or none:
which, follows from its random weights, the picture and the prompt. Answers are cut at 12 tokens.

- `unifiedreward/point`: `inference_llava/image_generation/point_score_image_generation.py`, statement by
  statement with its values of `pretrained`, `image_path` and `prompt` replaced. The score is read by
  upstream's `_extract_scores` (`sglang_llava/sglang_inference.py`). Pictures that are not RGB are converted
  first: upstream's script does not, and resizes a palette's indices.
- `unifiedreward/flow-grpo`: flow_grpo's own `unifiedreward_score_sglang`. In place of its server stands the
  same script, which shows the received picture and asks the received question. The one image mark in that
  question is the image: the second that an sglang server adds is not reproduced.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import shutil
import sys
import tempfile
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from _llava_next import CONFIG, WIDTH, FullPrecision, add_upstream, run_in_full_precision, write_checkpoint
from _oracle import INPUTS, environment, read_pairs, write_case
from unifiedreward import COMMIT, Script, function_of
from vqascore_llava import SETTINGS

FLOW = "ac4c86e8cae021841f1fde853d340e0db67690dd"
SCRIPT = "inference_llava/image_generation/point_score_image_generation.py"
FOLDER = "_shared/unifiedreward-llava"
TOKENS = 12
SCORES = ("2", "4", "5", *(f"{1 + 0.17 * i:.2f}" for i in range(24)))
REFUSALS = ("Final Score: unclear", "I cannot rate this image.")
WORDS = (" red", " blue", " cat", " circle", " square", " image", " a", "yes")
PENALTY = 1.05


def give_words(folder: Path) -> None:
    """Have the checkpoint in `folder` answer in upstream's format, with few tiles."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    config = json.loads((folder / "config.json").read_text()) | SETTINGS
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    phrases = [*(f"Final Score: {score}\n" for score in SCORES), *REFUSALS]
    added = json.loads((folder / "added_tokens.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
    for phrase in phrases:
        added[phrase] = max(added.values()) + 1
        settings["added_tokens_decoder"][str(added[phrase])] = {"content": phrase, **flags}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))

    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = tokenizer.convert_tokens_to_ids(phrases)
    words = [token for word in WORDS for token in tokenizer.encode(word)]
    assert len(words) == len(WORDS)
    (newline,) = tokenizer.encode("\n")
    end = tokenizer.eos_token_id
    state = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(6)
    asked, closed = torch.linalg.qr(torch.randn(WIDTH, 2, generator=draw))[0].T
    embed = torch.randn(state["model.embed_tokens.weight"].shape, generator=draw)
    head = torch.randn(state["lm_head.weight"].shape, generator=draw)
    head[: len(tokenizer) - len(said)] *= 0.3
    head[words] *= 3
    embed[[newline, *words]] += 16 * asked  # a word or a score follows
    embed[said] += 16 * closed  # the end follows
    head[[*words, *said]] += 6 * asked
    head[end] += 8 * closed
    head[len(tokenizer) :] += 12 * asked  # rows without a token, which upstream cuts off
    state["model.embed_tokens.weight"], state["lm_head.weight"] = embed.bfloat16(), head.bfloat16()
    for name in state:  # so that picture and prompt decide
        if name.endswith("proj.weight") and name.startswith("model.layers"):
            state[name] = state[name] * 2.2
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


class Server:
    """What stands for flow_grpo's server: upstream's script, asked flow_grpo's question."""

    def __init__(self, script: Script, picture: Path) -> None:
        self.script = script
        self.picture = picture
        self.text = ""
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    async def create(self, *, messages: list[dict[str, Any]], temperature: float, **_: Any) -> Any:
        """Answer an OpenAI chat request of one image."""
        assert temperature == 0
        shown, asked = messages[0]["content"]
        self.picture.write_bytes(base64.b64decode(shown["image_url"]["url"].partition("base64,")[2]))
        names = self.script.ask(image_path=str(self.picture), question=asked["text"])
        (self.text,) = names["text_outputs"]
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=self.text))])


def row_of(score: float, text: str) -> dict[str, Any]:
    """What upstream makes of a pair; it gives 0 for no score. Our error quotes the answer's end."""
    if not 0 < score <= 5:
        error = f"no 'Final Score:' from 1 to 5; it ends with {text[-120:]!r}"
        return {"score": None, "details": {}, "error": error}
    return {"score": score, "details": {"text": text}, "error": None}


def main() -> None:
    """Write the checkpoint and both cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", type=Path, required=True)
    parser.add_argument("--flow-grpo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    add_upstream(options.upstream)
    import numpy as np
    import torch
    from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM as Llava
    from PIL import Image

    torch.set_num_threads(1)
    run_in_full_precision(types.ModuleType("unused"))
    checkpoint = options.out / FOLDER
    shutil.rmtree(checkpoint, ignore_errors=True)
    write_checkpoint(checkpoint)
    give_words(checkpoint)
    generate = Llava.generate
    Llava.generate = lambda self, *given, max_new_tokens, **named: generate(
        self, *given, max_new_tokens=TOKENS, **named
    )
    values = {"pretrained": str(checkpoint), "device": "cpu"}
    script = Script(options.upstream / SCRIPT, values)
    script.names["torch"] = FullPrecision("torch")
    assert script.names["model"].generation_config.repetition_penalty == PENALTY
    final = function_of(options.upstream / "sglang_llava/sglang_inference.py", "_extract_scores", {"re": re})

    rows: dict[str, list[dict[str, Any]]] = {"point": [], "flow-grpo": []}
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(script, Path(scratch, "received.png"))
        sys.modules["openai"] = types.ModuleType("openai")
        sys.modules["openai"].AsyncOpenAI = lambda **_: server
        names = {"torch": torch, "np": np, "Image": Image}
        flow = function_of(
            options.flow_grpo / "flow_grpo" / "rewards.py", "unifiedreward_score_sglang", names
        )("cpu")
        for pair in read_pairs():
            path = INPUTS / pair["image"]
            image = Image.open(path)
            rgb = image.convert("RGB")
            converted = {}
            if image.mode != "RGB":
                path, converted = Path(scratch, "converted.png"), {"converted": True}
                rgb.save(path)
            found = script.ask(image_path=str(path), prompt=pair["prompt"])
            (text,) = found["text_outputs"]
            (score,) = final([text])
            rows["point"].append({**pair, "metadata": {}, **converted, **row_of(score, text)})
            (score,), _ = flow([np.array(rgb)], [pair["prompt"]], [{}])
            rows["flow-grpo"].append({**pair, "metadata": {}, **row_of(score, server.text)})

    known = {
        "point": ("unifiedreward-point-llava", "7b", f"UnifiedReward, {SCRIPT.rpartition('/')[2]}", COMMIT),
        "flow-grpo": (
            "unifiedreward-flow-grpo",
            "7b-v1.5-flow-grpo",
            "flow_grpo, rewards.py, on UnifiedReward's script",
            f"{FLOW}; UnifiedReward {COMMIT}",
        ),
    }
    for recipe, (name, variant, oracle, commit) in known.items():
        case = {
            "reward": f"unifiedreward:{variant}",
            "recipe": f"unifiedreward/{recipe}",
            "config": {**CONFIG, "max_new_tokens": TOKENS},
            "files": {"checkpoint": f"../{FOLDER}"},
            "oracle": {
                "name": oracle,
                "commit": commit,
                "environment": environment("torch", "transformers", "pillow"),
                "dtype": "float32",
            },
            "tolerance": 1e-5,
        }
        write_case(options.out / name, case, rows[recipe])


if __name__ == "__main__":
    main()
