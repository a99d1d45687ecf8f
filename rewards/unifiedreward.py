"""UnifiedReward: a vision-language model that writes its judgement; the score is read from the text.

Paper: arXiv 2503.05236. Source of the recipes: CodeGoat24/UnifiedReward, `inference_qwen/image_generation`,
`inference_qwen/UnifiedReward-2.0-inference`, `inference_llava/image_generation` and, for reading the one
score of an answer, `sglang_llava`; the three of an answer are read as in CodeGoat24/Pref-GRPO,
`fastvideo/rewards/unifiedreward.py`. One recipe is that of yifan123/flow_grpo, `flow_grpo/rewards.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self, cast

import torch
from PIL import Image
from torch import Tensor

from rewardzoo.errors import ItemError
from rewardzoo.rewards._llava_next import read_generation, read_llava_next, read_settings
from rewardzoo.rewards._model import Batch, Outcome, RewardModel, Score
from rewardzoo.rewards._spec import HubFolder, RewardSpec, Variant
from rewardzoo.rewards._vlm import MAX_BATCH_TOKENS, Turn, VisionLanguageModel
from rewardzoo.rewards._vlm_images import LlavaImages, pinpoints_of

_CAPTION = "\nYour task is provided as follows:\nText Caption: [{prompt}]"
_CRITERIA = (
    "You are given a text caption and a generated image based on that caption. Your task is to "
    "evaluate this image based on two key criteria:\n"
    "1. Alignment with the Caption: Assess how well this image aligns with the provided "
    "caption. Consider the accuracy of depicted objects, their relationships, and attributes "
    "as described in the caption.\n"
    "2. Overall Image Quality: Examine the visual quality of this image, including clarity, "
    "detail preservation, color accuracy, and overall aesthetic appeal.\n"
)
_AXES = (
    "- Alignment Score: How well the image matches the caption in terms of content.\n"
    "- Coherence Score: How logically consistent the image is (absence of visual glitches, "
    "object distortions, etc.).\n"
    "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.\n"
    "\n"
)
_DIMENSIONS = (
    "You are presented with a generated image and its associated text caption. Your task is to "
    "analyze the image across multiple dimensions in relation to the caption. Specifically:\n"
)
_FORMAT = "Output your evaluation using the format below:\n\n"
_THREE = "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n"
POINT = (
    _CRITERIA + "Extract key elements from the provided text caption, evaluate their presence in the "
    "generated image using the format: 'element (type): value' (where value=0 means not "
    "generated, and value=1 means generated), and assign a score from 1 to 5 after 'Final Score:'." + _CAPTION
)
"""Version 1's question: one score."""

FLOW_GRPO = (
    _CRITERIA + "Based on the above criteria, assign a score from 1 to 5 after 'Final Score:'." + _CAPTION
)
"""flow_grpo's: without the list of elements."""

ACS = (
    _DIMENSIONS
    + "Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
    + _AXES
    + _FORMAT
    + _THREE
    + _CAPTION
)
"""Version 2.0's question: alignment, coherence and style."""

WORDS = (
    _DIMENSIONS + "\n"
    "1. Evaluate each word in the caption based on how well it is visually represented in the "
    "image. Assign a numerical score to each word using the format:\n"
    '   Word-wise Scores: [["word1", score1], ["word2", score2], ..., ["wordN", scoreN], '
    '["[No_mistakes]", scoreM]]\n'
    "   - A higher score indicates that the word is less well represented in the image.\n"
    "   - The special token [No_mistakes] represents whether all elements in the caption were "
    "correctly depicted. A high score suggests no mistakes; a low score suggests missing or "
    "incorrect elements.\n"
    "\n"
    "2. Provide overall assessments for the image along the following axes (each rated from 1 "
    "to 5):\n" + _AXES + _FORMAT + "---\n"
    "\n"
    'Word-wise Scores: [["word1", score1], ..., ["[No_mistakes]", scoreM]]\n'
    "\n" + _THREE + _CAPTION
)
"""Version 1's question for the same three, which asks for a score of each word as well."""


@dataclass(frozen=True)
class Form:
    """How a recipe asks and reads.

    `axes` are the names of the scores in an answer, none where it has one final score, which is divided by
    `divisor`. `side` resizes the image to a square of so many pixels, `jpeg` recompresses it at that quality.
    """

    question: str
    max_new_tokens: int
    axes: tuple[str, ...] = ()
    divisor: float = 1.0
    side: int | None = None
    jpeg: int | None = None


_THREE_AXES = ("Alignment", "Coherence", "Style")
FORMS = {
    "unifiedreward/point": Form(POINT, 512),
    "unifiedreward/flow-grpo": Form(FLOW_GRPO, 4096, divisor=5, side=512),
    "unifiedreward/acs": Form(ACS, 4096, _THREE_AXES),
    "unifiedreward/acs-jpeg": Form(ACS, 4096, _THREE_AXES, jpeg=95),
    "unifiedreward/acs-words": Form(WORDS, 4096, _THREE_AXES),
}
"""The recipes."""

_FINAL = re.compile(r"Final Score:\s*([1-5](?:\.\d+)?)(?!\d)")  # upstream's, but "10" is not read as 1
_AXIS = re.compile(r"(\w+) Score \(1-5\):\s*([0-5](?:\.\d+)?)(?!\d)")
_SHOWN = 120  # characters of an answer that an error quotes


def _variant(name: str, repo: str, recipe: str, *, quirk: bool = False, **config: object) -> Variant:
    folder = HubFolder(f"CodeGoat24/UnifiedReward-{repo}", "main")
    return Variant(name, f"unifiedreward/{recipe}", {"checkpoint": folder}, "unknown", config, quirk)


class UnifiedReward(RewardModel):
    """UnifiedReward 1, 1.5 and 2.0."""

    spec = RewardSpec(
        name="unifiedreward",
        title="UnifiedReward",
        paper="arXiv:2503.05236",
        code_license="MIT",
        score_range=(0.0, 5.0),
        variants=(
            _variant("qwen-3b", "qwen-3b", "point"),
            _variant("qwen-7b", "qwen-7b", "point"),
            _variant("qwen-7b-words", "qwen-7b", "acs-words"),
            _variant("2.0-qwen-3b", "2.0-qwen-3b", "acs"),
            _variant("2.0-qwen-7b", "2.0-qwen-7b", "acs"),
            _variant("2.0-qwen-7b-jpeg", "2.0-qwen-7b", "acs-jpeg", quirk=True),
            _variant("7b", "7b", "point", llava_next=True, max_new_tokens=4096),
            _variant("7b-v1.5", "7b-v1.5", "point", llava_next=True, max_new_tokens=4096),
            _variant("7b-v1.5-flow-grpo", "7b-v1.5", "flow-grpo", quirk=True, llava_next=True),
        ),
        differentiable=False,
        max_batch=8,
        max_batch_cost=MAX_BATCH_TOKENS,
        gpu_dtype="bfloat16",
    )

    def __init__(self, variant: Variant, net: VisionLanguageModel, *, repetition_penalty: float) -> None:
        super().__init__(variant, net)
        self.form = FORMS[variant.recipe]
        self.is_llava = bool(variant.config.get("llava_next", False))
        self.max_new_tokens = cast(int, variant.config.get("max_new_tokens", self.form.max_new_tokens))
        self.repetition_penalty = repetition_penalty

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        """Read a folder: of `transformers`' Qwen2.5-VL, or of LLaVA-NeXT where `llava_next` is configured.

        The repetition penalty of the folder's `generation_config.json` is kept: upstream generates with it,
        over question and answer of Qwen, over the answer alone of LLaVA-NeXT.
        `variant.config` may override `max_new_tokens` and, for LLaVA-NeXT, fields of the vision tower
        (`vision`).
        """
        folder = files["checkpoint"]
        if variant.config.get("llava_next"):
            vision = cast(Mapping[str, Any] | None, variant.config.get("vision"))
            llava = read_llava_next(folder, tiles="anyres", vision=vision)
            settings, images = read_settings(folder), cast(LlavaImages, llava.images)
            images.tile(
                pinpoints_of(settings["image_grid_pinpoints"], images.side), settings["image_aspect_ratio"]
            )
            penalty = read_generation(folder).get("repetition_penalty") or 1.0
            return cls(variant, llava, repetition_penalty=penalty)
        net = VisionLanguageModel.from_folder(folder)
        return cls(variant, net, repetition_penalty=net.model.generation_config.repetition_penalty or 1.0)

    def prepare_image(self, image: Image.Image) -> dict[str, Tensor]:
        """Do to an RGB image what the recipe says, then what the model's own processor does."""
        if self.form.side is not None:
            image = image.resize((self.form.side, self.form.side))
        if self.form.jpeg is not None:
            image = _recompress(image, self.form.jpeg)
        return cast(VisionLanguageModel, self.net).prepare_image(image)

    def cost(self, width: int, height: int) -> int:
        """The image's tokens."""
        if self.form.side is not None:
            width = height = self.form.side
        return cast(VisionLanguageModel, self.net).count_of(width, height)

    def prepare_prompt(self, prompt: str, metadata: Mapping[str, Any]) -> str:
        """Write the dialogue: the image and the recipe's question about the prompt."""
        question = self.form.question.format(prompt=prompt)
        text = f"\n{question}" if self.is_llava else question
        return cast(VisionLanguageModel, self.net).chat([Turn("user", text, image=True)])

    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Pad on the left, each distinct image once: see `VisionLanguageModel.collate`."""
        return cast(VisionLanguageModel, self.net).collate(images, image_index, asked)

    def answers(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """What the model writes about B items, most likely token by token."""
        net = cast(VisionLanguageModel, self.net)
        return net.generate(inputs, self.max_new_tokens, repetition_penalty=self.repetition_penalty)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Scores (B,) in float32, in [1, 5] (`point`), [0, 5] (`acs`) or [0.2, 1] (`flow-grpo`).

        NaN where the answer has none.
        """
        outcomes = [read_score(text, self.form) for text in self.answers(inputs)]
        values = [o.value if isinstance(o, Score) else math.nan for o in outcomes]
        return torch.tensor(values, device=inputs["input_ids"].device)

    def evaluate(self, batch: Batch) -> Sequence[Outcome]:
        """The scores; the answer (`text`) and, of three, each one by its name in lower case as details."""
        return [read_score(text, self.form) for text in self.answers(batch.inputs)]


def read_score(text: str, form: Form) -> Outcome:
    """Read the score from an answer: the final one over `form.divisor`, or the mean of the three.

    An answer without it, or with a score above 5, is an `ItemError` that quotes the answer's end.
    """
    if not form.axes:
        found = _FINAL.search(text)
        if found is None or float(found[1]) > 5:
            return _unreadable("no 'Final Score:' from 1 to 5", text)
        return Score(float(found[1]) / form.divisor, {"text": text})
    by_name = {name: float(value) for name, value in _AXIS.findall(text)}
    missing = [axis for axis in form.axes if not 0 <= by_name.get(axis, -1) <= 5]
    if missing:
        return _unreadable(f"no {' and '.join(missing)} Score from 0 to 5", text)
    parts = {axis.lower(): by_name[axis] for axis in form.axes}
    return Score(sum(parts.values()) / len(parts), {**parts, "text": text})


def _unreadable(what: str, text: str) -> ItemError:
    return ItemError(f"the model's answer has {what}; it ends with {text[-_SHOWN:]!r}")


def _recompress(image: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, format="JPEG", quality=quality)
    return Image.open(file).convert("RGB")
