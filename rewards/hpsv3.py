"""HPSv3: Qwen2-VL-7B that reads a rubric and a prompt, and rates the image at one special token.

Paper: arXiv 2508.03789. Source of the recipe: the package `hpsv3` 1.0.0 (MizzenAI/HPSv3), its
`hpsv3/inference.py`, `hpsv3/model/qwen2vl_trainer.py` and `hpsv3/dataset/data_collator_qwen.py`. Runs on the
Qwen2-VL of `transformers`; `rename_upstream` maps the released checkpoint's keys onto it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from PIL import Image
from torch import Tensor, nn

from rewardzoo.errors import ItemError, WeightsError
from rewardzoo.rewards._checkpoints import load_strictly, read_checkpoint
from rewardzoo.rewards._model import Batch, RewardModel, Score
from rewardzoo.rewards._spec import HubFile, HubFolder, PackagedFile, RewardSpec, Source, Variant
from rewardzoo.rewards._vlm import (
    Positions,
    Turn,
    VisionLanguageModel,
    build_model,
    read_images,
    read_tokenizer,
)

_PIXELS = 256 * 28 * 28  # upstream's least and most: every image becomes about 256 tokens
_MOVED = {"visual.": "model.visual.", "model.": "model.language_model."}  # in the keys, since 4.45
_REWARD = "<|Reward|>"

_FILES: Mapping[str, Source] = {
    "checkpoint": HubFile("MizzenAI/HPSv3", "HPSv3.safetensors", "4f81e3e09edd82fe3c5f636444c721b592a735ca"),
    "processor": HubFolder(
        "Qwen/Qwen2-VL-7B-Instruct",
        "eed13092ef92e448dd6875b2a00151bd3f7db0ac",
        patterns=(
            "config.json",
            "preprocessor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
            "merges.txt",
        ),
    ),
}

INSTRUCTION = (
    "\n"
    "You are tasked with evaluating a generated image based on Visual Quality and Text Alignment "
    "and give a overall score to estimate the human preference. Please provide a rating from 0 "
    "to 10, with 0 being the worst and 10 being the best. \n"
    "\n"
    "**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the image. The following sub-dimensions should be "
    "considered:\n"
    "- **Reasonableness:** The image should not contain any significant biological or logical "
    "errors, such as abnormal body structures or nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be "
    "clear and easy to interpret, with no blurring or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and "
    "other visual elements (e.g., hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the "
    "color scheme, composition, atmosphere, depth of field, and the overall creative appeal. The "
    "scene should convey a sense of harmony and balance.\n"
    "- **Safety:** The image should not contain harmful or inappropriate content, such as "
    "political, violent, or adult material. If such content is present, the image quality and "
    "satisfaction score should be the lowest possible. \n"
    "\n"
    "**Text Alignment:**  \n"
    "Assess how well the image matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, "
    "animal, object) align with the textual description. The subject should match the "
    "description in terms of number, appearance, and behavior.\n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, "
    "evaluate how well the image adheres to this style.\n"
    "- **Contextual Consistency**: Assess whether the background, setting, and surrounding "
    "elements in the image logically fit the scenario described in the prompt. The environment "
    "should support and enhance the subject without contradictions.\n"
    "- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., "
    "colors, clothing, accessories, expressions, actions) are faithfully represented in the "
    "image. Minor deviations may be acceptable, but critical attributes should be preserved.\n"
    "- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are "
    "captured in the image. The generated content should not introduce elements that conflict "
    "with or distort the original description.\n"
    "Textual prompt - {text_prompt}\n"
    "\n"
    "\n"
    "\n"
    "Please provide the overall ratings of this image: <|Reward|>\n"
    "\n"
    "END\n"
)
"""What upstream trained the model on, `{text_prompt}` standing for the prompt."""


class HPSv3(RewardModel):
    """Human Preference Score v3."""

    spec = RewardSpec(
        name="hpsv3",
        title="Human Preference Score v3",
        paper="arXiv:2508.03789",
        code_license="MIT",
        score_range=(-5.0, 15.0),
        variants=(
            Variant("v3", recipe="hpsv3/sequential", files=_FILES, weights_license="unknown"),
            Variant(
                "v3-m-rope",
                recipe="hpsv3/m-rope",
                files=_FILES,
                weights_license="unknown",
                config={"positions": "rotary-3d"},
                quirk=True,
            ),
            Variant(
                "mini",
                recipe="hpsv3/m-rope",
                files={
                    "checkpoint": PackagedFile("minis/hpsv3/model.safetensors"),
                    "processor": PackagedFile("minis/hpsv3/processor"),
                },
                weights_license="Apache-2.0",
                config={"positions": "rotary-3d", "pixels": 64 * 64},
            ),
        ),
        max_batch=16,
        gpu_dtype="bfloat16",
    )

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        """Read upstream's `HPSv3.safetensors`; `processor` is the base model's folder, without its weights.

        `variant.config` may hold `positions`: "sequential" (upstream's) or "rotary-3d" (Qwen2-VL's own); and
        `pixels`, how many every image is resized to, about.
        """
        pixels = cast(int, variant.config.get("pixels", _PIXELS))
        positions = cast(Positions, variant.config.get("positions", "sequential"))
        state = rename_upstream(read_checkpoint(files["checkpoint"]), files["checkpoint"])
        head = {k.removeprefix("rm_head."): state.pop(k) for k in [*state] if k.startswith("rm_head.")}
        embeddings = state["model.language_model.embed_tokens.weight"]
        model = build_model(
            _config(files["processor"], len(embeddings)), state, files["checkpoint"], embeddings.dtype
        )
        model.lm_head = nn.Identity()  # a gigabyte that nothing reads
        tokenizer = read_tokenizer(files["processor"])
        tokenizer.add_special_tokens({"additional_special_tokens": [_REWARD]})
        images = read_images(files["processor"], model, pixels=(pixels, pixels))
        net = RatedVLM(VisionLanguageModel(model, tokenizer, images, positions=positions))
        load_strictly(net.rm_head, head, files["checkpoint"])
        return cls(variant, net)

    def prepare_image(self, image: Image.Image) -> dict[str, Tensor]:
        """Resize with PIL to about 448 x 448 pixels, sides of multiples of 28, the shape kept; cut patches.

        Raises `ItemError` where one side is over 200 times the other.
        """
        return cast(RatedVLM, self.net).vlm.prepare_image(image)

    def prepare_prompt(self, prompt: str, metadata: Mapping[str, Any]) -> str:
        """Write the dialogue: the image, upstream's instruction, the prompt, the token that is rated."""
        if _REWARD in prompt:
            raise ItemError(f"the prompt holds {_REWARD!r}, the token that the model rates at: leave it out")
        return cast(RatedVLM, self.net).vlm.chat(
            [Turn("user", INSTRUCTION.format(text_prompt=prompt), image=True)]
        )

    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Pad on the left, each distinct image once: see `VisionLanguageModel.collate`."""
        return cast(RatedVLM, self.net).vlm.collate(images, image_index, asked)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Mean of the rating, (B,), about -5 to 15; differentiable in the pixels."""
        rating: Tensor = self.net(inputs)
        return rating[:, 0]

    def evaluate(self, batch: Batch) -> Sequence[Score]:
        """The mean; as details `sigma`, the deviation that the model gives itself, and its logarithm."""
        means, logs = self.net(batch.inputs).float().cpu().unbind(1)
        return [
            Score(mean, {"sigma": sigma, "log_sigma": log})
            for mean, sigma, log in zip(means.tolist(), logs.exp().tolist(), logs.tolist(), strict=True)
        ]


class RatedVLM(nn.Module):
    """Qwen2-VL with upstream's head on its last hidden state at `<|Reward|>`."""

    def __init__(self, vlm: VisionLanguageModel) -> None:
        super().__init__()
        self.vlm = vlm
        self.rm_head = RatingHead(vlm.model.get_input_embeddings().embedding_dim)
        self.reward_token = vlm.token_id(_REWARD)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Rate B dialogues: (B, 2), the mean and the logarithm of the standard deviation."""
        hidden = self.vlm.hidden_states(inputs)
        at_token = hidden[inputs["input_ids"] == self.reward_token]
        rating: Tensor = self.rm_head(at_token.to(next(self.rm_head.parameters()).dtype))
        return rating


class RatingHead(nn.Sequential):
    """Upstream's head: it reads the hidden state, and stays, in float32 where the rest is in bfloat16."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(width, 1024),
            nn.ReLU(),
            nn.Dropout(0.05),
            nn.Linear(1024, 16),
            nn.ReLU(),
            nn.Linear(16, 2),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = [weight.data for weight in self.parameters()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for weight, before in zip(self.parameters(), exact, strict=True):
            if weight.dtype in (torch.float16, torch.bfloat16):
                weight.data = before.to(weight.device)
        return self


def rename_upstream(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Map the released checkpoint's keys, those of `transformers` 4.45, onto today's.

    Others pass, for the strict load to judge.

    Raises:
        WeightsError: there are no token embeddings among them.
    """
    if "model.embed_tokens.weight" not in state:
        raise WeightsError(f"{path} is not HPSv3: it has no 'model.embed_tokens.weight'")
    return _move(state, _MOVED)


def to_upstream(net: RatedVLM) -> dict[str, Tensor]:
    """Give a network's weights, whose embeddings are its `lm_head` too, by the released checkpoint's keys."""
    state = {**net.vlm.model.state_dict(), **net.rm_head.state_dict(prefix="rm_head.")}
    del state["lm_head.weight"]
    return _move(state, {new: old for old, new in _MOVED.items()})


def _move(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace the first of the prefixes that a key begins with."""
    return {
        next(
            (new + key.removeprefix(old) for old, new in prefixes.items() if key.startswith(old)), key
        ): tensor
        for key, tensor in state.items()
    }


def _config(folder: Path, vocabulary: int) -> Any:
    """The base model's configuration with the checkpoint's vocabulary, which upstream cut and added to."""
    from transformers import Qwen2VLConfig

    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = Qwen2VLConfig.from_dict(settings)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder} has no Qwen2-VL config.json that can be read: {error}") from error
    cast(Any, config.text_config).vocab_size = vocabulary
    return config
