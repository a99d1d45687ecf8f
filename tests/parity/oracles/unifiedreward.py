r"""UnifiedReward on Qwen2.5-VL in upstream's own scripts.

    git clone https://github.com/CodeGoat24/UnifiedReward UPSTREAM  (MIT)
    git -C UPSTREAM checkout ff6f520247a2d36e2aff7b2ba53a935afd437f66
    git clone https://github.com/CodeGoat24/Pref-GRPO GRPO  (no licence file)
    git -C GRPO checkout 3e787f6dd5a3051b40d61f07e9578468ac26130a
    python3.11 -m venv ENV
    ENV/bin/pip install --no-deps -r tests/parity/oracles/requirements/unifiedreward.txt
    ENV/bin/python tests/parity/oracles/unifiedreward.py --upstream UPSTREAM --pref-grpo GRPO \
        --out tests/parity/fixtures

A small random Qwen2.5-VL has its embeddings laid out so that it answers in upstream's format: which score it
writes, and whether it writes one, follows from its random weights, the picture and the prompt. Upstream's
scripts run statement by statement with their values of `model_path`, `image_path` and `prompt` replaced:
- `inference_qwen/image_generation/qwen_point_score_image_generation.py` (recipe `point`) and
  `qwen_point_score_ACS_image_generation.py` (`acs-words`);
- `inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py` (`acs-jpeg`) with
  upstream's `vllm_qwen/vllm_request.py`; `acs` is the same with PNG in place of JPEG.
Scores are read by upstream's `_extract_scores` (`sglang_llava/sglang_inference.py`) and by Pref-GRPO's
`extract_normalized_rewards`. Not upstream's: the model, answers cut at 12 tokens, the CPU, and in place of a
vLLM server `transformers`, which does to the decoded request what upstream's other two scripts do.
"""

from __future__ import annotations

import argparse
import ast
import base64
import importlib
import importlib.util
import json
import os
import random
import re
import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from _oracle import INPUTS, environment, mend_torchvision, randomize, read_pairs, write_case
from vqascore_qwen import SPECIAL, TEMPLATE

COMMIT = "ff6f520247a2d36e2aff7b2ba53a935afd437f66"
TOKENS = 12
SCRIPTS = {
    "point": "inference_qwen/image_generation/qwen_point_score_image_generation.py",
    "acs-words": "inference_qwen/image_generation/qwen_point_score_ACS_image_generation.py",
    "acs": "inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py",
}
VARIANTS = {
    "point": "qwen-7b",
    "acs-words": "qwen-7b-words",
    "acs": "2.0-qwen-7b",
    "acs-jpeg": "2.0-qwen-7b-jpeg",
}


class Script:
    """An upstream script, run in two parts: what loads, once, and what asks, for each pair."""

    def __init__(self, path: Path, values: dict[str, str]) -> None:
        self.path = path
        body = ast.parse(path.read_text(encoding="utf-8")).body
        first = next(i for i, node in enumerate(body) if _assigned(node) & {"image_path", "input_data"})
        self.asking = body[first:]
        self.names: dict[str, Any] = {}
        self._run(body[:first], values)

    def ask(self, **values: str) -> dict[str, Any]:
        """Run the rest with these values and return all names."""
        self._run(self.asking, values)
        return self.names

    def _run(self, body: list[ast.stmt], values: dict[str, str]) -> None:
        module = ast.Module(body=[_replaced(node, values) for node in body], type_ignores=[])
        exec(compile(ast.fix_missing_locations(module), str(self.path), "exec"), self.names)


def _assigned(node: ast.stmt) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _replaced(node: ast.stmt, values: dict[str, str]) -> ast.stmt:
    name = next(iter(_assigned(node) & set(values)), None)
    if name is None:
        return node
    assert isinstance(node, ast.Assign)
    return ast.Assign(targets=node.targets, value=ast.Constant(values[name]))


def read_question(path: Path, prompt: str) -> str:
    """Return the question that a script asks about a prompt: its longest formatted string."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    longest = max(texts, key=lambda node: len(ast.unparse(node)))
    return str(eval(compile(ast.Expression(longest), str(path), "eval"), {"prompt": prompt}))


def function_of(path: Path, name: str, names: dict[str, Any]) -> Any:
    """Return one function of a file, which may be nested in another, without running the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)
    exec(compile(ast.Module(body=[found], type_ignores=[]), str(path), "exec"), names)
    return names[name]


def phrases() -> list[list[str]]:
    """Return what the small model can say, step by step; each phrase is one token of its own."""
    draw = random.Random(0)

    def scored(what: str, least: int) -> list[str]:
        values = [f"{draw.uniform(least, 5):.{draw.randint(1, 3)}f}" for _ in range(10)]
        return [f"{what}: {value}\n" for value in [*values, "4", "5"]]

    refusals = ["I cannot rate this image.", "Final Score: unclear"]
    axes = [scored(f"{axis} Score (1-5)", 0) for axis in ("Alignment", "Coherence", "Style")]
    return [scored("Final Score", 1) + refusals, *axes]


def write_base(folder: Path, texts: list[str]) -> None:
    """Write the tokenizer, the released preprocessing and the small Qwen2.5-VL."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import (
        GenerationConfig,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2TokenizerFast,
        Qwen2VLImageProcessor,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.model.save(str(folder))
    own = Qwen2TokenizerFast(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        additional_special_tokens=[*SPECIAL[1:2], *SPECIAL[3:]],
        chat_template=TEMPLATE,
    )
    steps = phrases()
    own.add_tokens([AddedToken(phrase, normalized=False) for step in steps for phrase in step])
    own.save_pretrained(folder)
    Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12845056).save_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["processor_class"] = "Qwen2_5_VLProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}, indent=1))
    ids = dict(zip(SPECIAL, own.convert_tokens_to_ids(SPECIAL), strict=True))
    config = Qwen2_5_VLConfig(
        vocab_size=len(own) + 5,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_theta=10000.0,
        rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
        rms_norm_eps=1e-6,
        use_sliding_window=False,
        sliding_window=32768,
        max_window_layers=2,
        tie_word_embeddings=False,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(  # as Qwen2.5-VL-7B-Instruct's
        bos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        do_sample=True,
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        repetition_penalty=1.05,
        temperature=0.000001,
    )
    lay_out(model, own)
    model.save_pretrained(folder)


def lay_out(model: Any, tokenizer: Any) -> None:
    """Draw every weight, and make each step's phrases likely behind those of the step before."""
    import torch

    def spread(name: str, weight: Any) -> float:
        loud = 2.4 if name.startswith("model.layers") else 1.5  # so that picture and prompt decide
        return 0.2 if weight.ndim < 2 else loud * weight[0].numel() ** -0.5

    randomize(model.named_parameters(), 5, spread)
    generator = torch.Generator().manual_seed(6)
    width = model.config.hidden_size
    directions = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    ids = [tokenizer.convert_tokens_to_ids(step) for step in phrases()]
    behind = [tokenizer.encode("\n"), *ids]  # the assistant's turn begins behind a line feed
    with torch.no_grad():
        words, head = model.get_input_embeddings().weight, model.lm_head.weight
        words.copy_(torch.randn(words.shape, generator=generator))
        head.copy_(torch.randn(head.shape, generator=generator))
        for i, before in enumerate(behind):
            words[before] += 60 * directions[i]
            if i < len(ids):
                head[ids[i]] += 60 * directions[i]
        refusals = ids[0][-2:]
        words[refusals] += 60 * (directions[len(ids)] - directions[1])
        head[len(tokenizer) :] = 0  # rows without a token, as the released model has them
        end = tokenizer.eos_token_id
        head[end] += 60 * directions[len(ids)] + 61.5 * directions[len(ids) - 1]  # at times without Style


class Server:
    """What stands for the vLLM server: it answers `requests`' posts with the model itself."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.refusal: ValueError | None = None

    def post(self, session: Any, url: str, json: dict[str, Any], timeout: float) -> Any:
        """Answer an OpenAI chat request of one image."""
        from PIL import Image
        from qwen_vl_utils import process_vision_info

        (message,) = json["messages"]
        shown = message["content"][0]["image_url"]["url"].partition("base64,")[2]
        image = Image.open(BytesIO(base64.b64decode(shown))).convert("RGB")
        said = [{"role": "user", "content": [{"type": "image", "image": image}, message["content"][1]]}]
        chat = self.processor.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        self.refusal, text = None, ""
        try:
            images, _ = process_vision_info(said)
            inputs = self.processor(text=[chat], images=images, return_tensors="pt")
        except ValueError as error:
            self.refusal = error
        else:
            tokens = self.model.generate(**inputs, max_new_tokens=json["max_tokens"])
            text = self.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        reply = {"choices": [{"message": {"content": text}}]}
        return SimpleNamespace(status_code=200, raise_for_status=lambda: None, json=lambda: reply)


def main() -> None:
    """Write the model and the four cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", type=Path, required=True)
    parser.add_argument("--pref-grpo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    upstream, out = options.upstream.resolve(), options.out.resolve()

    mend_torchvision()
    import torch
    import transformers
    from transformers import Qwen2_5_VLForConditionalGeneration as Qwen

    torch.set_num_threads(1)
    torch.manual_seed(0)
    pairs = read_pairs()
    questions = {kind: upstream / path for kind, path in SCRIPTS.items()}
    folder = out / "_shared" / "unifiedreward-qwen"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    texts = [read_question(path, "") for path in questions.values()] * 3
    write_base(folder, texts + [pair["prompt"] for pair in pairs])

    load, generate = Qwen.from_pretrained, Qwen.generate
    Qwen.from_pretrained = lambda path, device_map=None, **kwargs: load(path, **kwargs)
    Qwen.generate = lambda self, max_new_tokens, **inputs: generate(self, max_new_tokens=TOKENS, **inputs)
    transformers.AutoProcessor.from_pretrained = _slow(transformers.AutoProcessor.from_pretrained)
    scripts = {kind: Script(questions[kind], {"model_path": str(folder)}) for kind in ("point", "acs-words")}
    server = Server(scripts["point"].names["model"], scripts["point"].names["processor"])
    sys.path.insert(0, str(upstream))
    request = importlib.import_module("vllm_qwen.vllm_request")
    request.requests.Session.post = lambda *given, **named: server.post(*given, **named)
    scripts["acs"] = scripts["acs-jpeg"] = Script(questions["acs"], {})

    final = function_of(upstream / "sglang_llava/sglang_inference.py", "_extract_scores", {"re": re})
    three = _module(options.pref_grpo.resolve() / "fastvideo" / "rewards" / "unifiedreward.py")
    to_jpeg = request.VLMessageClient._encode_image
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # upstream's client writes results.json
        for kind, variant in VARIANTS.items():
            request.VLMessageClient._encode_image = _to_png if kind == "acs" else to_jpeg
            rows = [
                ask(scripts[kind], server, pair, final, three.extract_normalized_rewards) for pair in pairs
            ]
            case = {
                "reward": f"unifiedreward:{variant}",
                "recipe": f"unifiedreward/{kind}",
                "config": {"max_new_tokens": TOKENS},
                "files": {"checkpoint": f"../_shared/{folder.name}"},
                "oracle": {
                    "name": f"UnifiedReward, {scripts[kind].path.name}",
                    "commit": COMMIT,
                    "environment": environment("torch", "transformers", "qwen-vl-utils", "pillow"),
                    "dtype": "float32",
                },
                "tolerance": 1e-5,
            }
            write_case(out / f"unifiedreward-{kind}", case, rows)


def ask(script: Script, server: Server, pair: dict[str, str], final: Any, three: Any) -> dict[str, Any]:
    """Return the pair with what upstream makes of it."""
    row = {**pair, "metadata": {}, "score": None, "details": {}, "error": None}
    server.refusal = None
    try:
        names = script.ask(image_path=str(INPUTS / pair["image"]), prompt=pair["prompt"])
        if server.refusal is not None:
            raise server.refusal
    except ValueError as error:
        if "aspect ratio" not in str(error):
            raise
        return {**row, "error": "aspect ratio must be smaller than 200"}
    if script.path.name == Path(SCRIPTS["point"]).name:
        text = names["output_text"]
        (score,) = final([text])  # 0 where there is none
        if not 0 < score <= 5:
            return {**row, "error": "no 'Final Score:'"}
        return {**row, "score": score, "details": {"text": text}}
    text = names["output_text"] if "output_text" in names else names["output"][0]["model_output"]
    # What is missing upstream takes from the other answers of the batch; this one shows where it does.
    other = "\n".join(f"{axis} Score (1-5): 4.987654" for axis in ("Alignment", "Coherence", "Style"))
    *_, parts = three([text, other], device="cpu")
    if any(values[0] == values[1] for values in parts.values()):
        return {**row, "error": "the model's answer has no "}
    details = {axis.lower(): values[0] for axis, values in parts.items()}
    return {**row, "score": sum(details.values()) / 3, "details": {**details, "text": text}}


def _slow(load: Any) -> Any:
    """PIL's image processor, upstream's at the time: later releases of transformers take torchvision's."""
    return lambda path, **kwargs: load(path, use_fast=False, **kwargs)


def _to_png(client: Any, path: str) -> str:
    from PIL import Image

    file = BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"upstream_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
