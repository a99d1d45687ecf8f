"""VQAScore: how likely a model that answers questions about images says that the image shows the prompt.

Paper: arXiv 2404.01291. Source of the recipes: linzhiqiu/t2v_metrics, `models/vqascore_models`:
`clip_t5_model.py` and `llavaov_model.py` before version 3.1, `qwen2vl_model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import torch
from PIL import Image
from torch import Tensor

from rewardzoo.errors import ItemError
from rewardzoo.rewards import _clip
from rewardzoo.rewards._clip_t5 import ClipT5
from rewardzoo.rewards._critic import LLAVA_ONEVISION
from rewardzoo.rewards._llava_next import read_llava_next, read_settings
from rewardzoo.rewards._model import RewardModel
from rewardzoo.rewards._spec import HubFile, HubFolder, PackagedFile, RewardSpec, Variant
from rewardzoo.rewards._vlm import MAX_BATCH_TOKENS, Turn, VisionLanguageModel, penalise_repeats
from rewardzoo.rewards._vlm_images import LlavaImages, TileUse, pinpoints_of


@dataclass(frozen=True)
class Recipe:
    """What a recipe asks, and how.

    `lead` is between the image and the question; `penalised` lowers the logits of the dialogue's own tokens;
    `tiles` are for LLaVA-OneVision.
    """

    question: str
    lead: str = ""
    penalised: bool = False
    tiles: TileUse | None = None


_QWEN = 'Does this figure show "{}"? Please answer Yes or No.'
_LLAVA = 'Does this image show "{}"? Answer the question with Yes or No'
RECIPES: Mapping[str, Recipe] = {
    "vqascore/clip-flant5": Recipe('Does this figure show "{}"? Please answer yes or no.'),
    "vqascore/qwen": Recipe(_QWEN),
    "vqascore/qwen-penalised": Recipe(_QWEN, penalised=True),
    "vqascore/llava-onevision": Recipe(_LLAVA, lead="\n", tiles="anyres"),
    "vqascore/llava-onevision-frames": Recipe(_LLAVA, lead="\n", tiles="frames"),
}


class Asked(NamedTuple):
    """One item's question and its answer, as the model takes them."""

    question: Any
    answer: Any


def _clip_flant5(size: str, revision: str, tokenizer_revision: str) -> Variant:
    return Variant(
        f"clip-flant5-{size}",
        recipe="vqascore/clip-flant5",
        files={
            "checkpoint": HubFolder(
                f"zhiqiulin/clip-flant5-{size}",
                revision,
                ("config.json", "*.index.json", "*.safetensors", "pytorch_model*.bin"),
            ),
            "vocabulary": HubFile(f"google/flan-t5-{size}", "spiece.model", tokenizer_revision),
        },
        weights_license="Apache-2.0",
    )


def _qwen(size: str, revision: str, licence: str, *, penalised: bool = False) -> Variant:
    suffix = "-penalised" if penalised else ""
    return Variant(
        f"qwen2.5-vl-{size.lower()}{suffix}",
        recipe=f"vqascore/qwen{suffix}",
        files={"checkpoint": HubFolder(f"Qwen/Qwen2.5-VL-{size}-Instruct", revision)},
        weights_license=licence,
        quirk=penalised,
    )


def _llava(suffix: str = "") -> Variant:
    return Variant(
        f"llava-onevision-7b{suffix}",
        recipe=f"vqascore/llava-onevision{suffix}",
        files={"checkpoint": LLAVA_ONEVISION},
        weights_license="Apache-2.0",
        quirk=bool(suffix),
    )


_QWEN_3B = ("3B", "66285546d2b821cf421d4f5eb2576359d3770cd3", "Qwen Research License")
_QWEN_7B = ("7B", "cc594898137f460bfe9f0759e9844b3ce807cfb5", "Apache-2.0")


class VQAScore(RewardModel):
    """VQAScore with CLIP-FlanT5, Qwen2.5-VL or LLaVA-OneVision.

    An item's metadata may hold `question`, in which `{}` stands for the prompt, and `answer`, whose
    probability is the score; the defaults are upstream's.
    """

    spec = RewardSpec(
        name="vqascore",
        title="VQAScore",
        paper="arXiv:2404.01291",
        code_license="Apache-2.0",
        score_range=(0.0, 1.0),
        variants=(
            _clip_flant5(
                "xl", "2cee5afb3386792d9b21066a89232687dfce2c62", "7d6315df2c2fb742f0f5b556879d730926ca9001"
            ),
            _clip_flant5("xxl", "main", "ae7c9136adc7555eeccc78cdd960dfd60fb346ce"),
            _qwen(*_QWEN_3B),
            _qwen(*_QWEN_7B),
            _llava(),
            _qwen(*_QWEN_3B, penalised=True),
            _qwen(*_QWEN_7B, penalised=True),
            _llava("-frames"),
            Variant(
                "mini",
                recipe="vqascore/clip-flant5",
                files={
                    "checkpoint": PackagedFile("minis/vqascore/checkpoint"),
                    "vocabulary": PackagedFile("minis/vqascore/spiece.model"),
                },
                weights_license="Apache-2.0",
                config={"vision": _clip.MINI["vision_config"]},
            ),
        ),
        max_batch=16,
        max_batch_cost=MAX_BATCH_TOKENS,
        gpu_dtype="bfloat16",
    )
    net: ClipT5 | VisionLanguageModel

    def __init__(self, variant: Variant, net: ClipT5 | VisionLanguageModel) -> None:
        super().__init__(variant, net)
        self.recipe = RECIPES[variant.recipe]

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        """Read upstream's CLIP-FlanT5 or LLaVA-OneVision, or a Qwen2.5-VL of `transformers`.

        `vision` in the variant's configuration is for vision towers of another size.
        """
        folder, vision = files["checkpoint"], cast(Mapping[str, Any], variant.config.get("vision", {}))
        if "vocabulary" in files:
            return cls(variant, ClipT5.from_folder(folder, files["vocabulary"], vision))
        tiles = RECIPES[variant.recipe].tiles
        if tiles is None:
            return cls(variant, VisionLanguageModel.from_folder(folder))
        net = read_llava_next(folder, tiles=tiles, vision=vision)
        settings, images = read_settings(folder), cast(LlavaImages, net.images)
        images.tile(
            pinpoints_of(settings["image_grid_pinpoints"], images.side), settings["image_aspect_ratio"]
        )
        return cls(variant, net)

    def prepare_image(self, image: Image.Image) -> Any:
        """Preprocess as the model was trained: a padded square, patches or tiles."""
        return self.net.prepare_image(image)

    def cost(self, width: int, height: int) -> int:
        """The image's tokens."""
        if isinstance(self.net, ClipT5):
            return int(self.net.patches)
        return self.net.count_of(width, height)

    def prepare_prompt(self, prompt: str, metadata: Mapping[str, Any]) -> Asked:
        """Put the prompt into the question, and tokenise both question and answer.

        Raises:
            ItemError: `question` or `answer` is not a text, or is not one that the model can take.
        """
        options = {"question": self.recipe.question, "answer": "Yes"}
        for name in options:
            options[name] = metadata.get(name, options[name])
            if not isinstance(options[name], str) or not options[name].strip():
                raise ItemError(f"{name} must be a text that is not empty, got {options[name]!r}")
        question, answer = (text.replace("{}", prompt) for text in options.values())
        if isinstance(self.net, ClipT5):
            return Asked(self.net.question_ids(question), self.net.encode(answer))
        try:
            token = self.net.token_id(answer)
        except ValueError as error:
            raise ItemError(f"answer {error}") from error
        return Asked(self.net.chat([Turn("user", self.recipe.lead + question, image=True)]), token)

    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Asked]
    ) -> dict[str, Tensor]:
        """Pad the dialogues; equal images go through the vision tower once."""
        questions, answers = [one.question for one in asked], [one.answer for one in asked]
        if isinstance(self.net, ClipT5):
            return self.net.collate(images, image_index, questions, answers)
        return {
            **self.net.collate(images, image_index, questions),
            "answer": torch.tensor(answers),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Probability of the answer, (B,) in [0, 1]; differentiable in the pixels.

        For CLIP-FlanT5 the geometric mean over the answer's tokens and the end token behind them.
        """
        if isinstance(self.net, ClipT5):
            found: Tensor = self.net(inputs)
            return found
        logits = self.net.next_token_logits(inputs)
        if self.recipe.penalised:
            penalty = self.net.model.generation_config.repetition_penalty or 1.0
            logits = penalise_repeats(logits, inputs["input_ids"], inputs["attention_mask"], penalty)
        return logits.softmax(-1).gather(1, inputs["answer"][:, None])[:, 0]
