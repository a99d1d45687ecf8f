"""CLIPScore: the cosine of CLIP's image and prompt, in the forms in which it was published.

Paper: arXiv 2104.08718. The forms differ in network, prefix, scale, floor, resize and in how a prompt over
77 tokens is cut, so their scores cannot be compared. Sources: jmhessel/clipscore `clipscore.py`;
THUDM/ImageReward `ImageReward/models/CLIPScore.py`; torchmetrics `functional/multimodal/clip_score.py`;
flow_grpo `clip_scorer.py` and Tencent-Hunyuan/UniRL `unirl/reward/local/clip.py`, which are one recipe;
UniRL's `unirl-reward-service/reward_service/scorers/clip.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from PIL import Image
from torch import Tensor, nn

from rewardzoo.resize import ShortestAndCrop
from rewardzoo.rewards import _clip
from rewardzoo.rewards._model import PairReward
from rewardzoo.rewards._spec import HubFile, PackagedFile, RewardSpec, Variant


@dataclass(frozen=True)
class Form:
    """One published CLIPScore: `scale` times the cosine, or times the logit where `is_logit` is set."""

    scale: float
    resize: _clip.Resize
    is_logit: bool = False
    floor: float | None = None
    prefix: str = ""
    keeps_end: bool = True

    def square(self, size: int) -> ShortestAndCrop | None:
        """Return the step on bytes that makes an image a square; floats are resized otherwise."""
        return None if self.resize == "floats" else ShortestAndCrop(size, self.resize == "torchvision")


FORMS: Mapping[str, Form] = {
    "clipscore/paper": Form(2.5, "torchvision", floor=0.0, prefix="A photo depicts "),
    "clipscore/imagereward": Form(1.0, "torchvision"),
    "clipscore/torchmetrics": Form(100.0, "transformers", floor=0.0),
    "clipscore/torchmetrics-cut": Form(100.0, "transformers", floor=0.0, keeps_end=False),
    "clipscore/flow-grpo": Form(1 / 30, "floats", is_logit=True),
    "clipscore/unirl-service": Form(1 / 30, "transformers", is_logit=True),
}
"""The forms by recipe."""

_B_32 = HubFile(
    "openai/clip-vit-base-patch32", "pytorch_model.bin", "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
)
_REPO_L_14, _REVISION_L_14 = "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"
_L_14 = HubFile(_REPO_L_14, "model.safetensors", _REVISION_L_14)
_TOKENIZER = HubFile(_REPO_L_14, "tokenizer.json", _REVISION_L_14)


def _large(name: str, form: str, files: Mapping[str, HubFile]) -> Variant:
    return Variant(
        name,
        recipe=f"clipscore/{form}",
        files={"checkpoint": _L_14, **files},
        weights_license="unknown",
        config=_clip.VIT_L_14,
        resize=FORMS[f"clipscore/{form}"].square(224),
    )


class ClipScore(PairReward):
    """CLIPScore in its published forms; without a file "tokenizer", prompts are read by OpenAI's own."""

    spec = RewardSpec(
        name="clipscore",
        title="CLIPScore",
        paper="arXiv:2104.08718",
        code_license="MIT (paper), Apache-2.0 (ImageReward, torchmetrics, UniRL)",
        score_range=(-1.0, 100.0),
        variants=(
            Variant(
                "paper-b32",
                recipe="clipscore/paper",
                files={"checkpoint": _B_32},
                weights_license="unknown",
                config=_clip.VIT_B_32,
                resize=FORMS["clipscore/paper"].square(224),
            ),
            _large("imagereward-l14", "imagereward", {}),
            _large("torchmetrics-l14", "torchmetrics", {"tokenizer": _TOKENIZER}),
            _large("torchmetrics-cut-l14", "torchmetrics-cut", {"tokenizer": _TOKENIZER}),
            _large("flow-grpo-l14", "flow-grpo", {"tokenizer": _TOKENIZER}),
            _large("unirl-service-l14", "unirl-service", {"tokenizer": _TOKENIZER}),
            Variant(
                "mini",
                recipe="clipscore/imagereward",
                files={
                    "checkpoint": PackagedFile("minis/clipscore/model.safetensors"),
                    "tokenizer": PackagedFile("minis/clipscore/tokenizer.json"),
                },
                weights_license="Apache-2.0",
                config=_clip.MINI,
                resize=FORMS["clipscore/imagereward"].square(64),
            ),
        ),
    )

    def __init__(self, variant: Variant, net: nn.Module, tokenize: _clip.Tokenize) -> None:
        super().__init__(variant, net)
        self.tokenize = tokenize
        self.form = FORMS[variant.recipe]
        self.image_size: int = cast(Any, net).config.vision_config.image_size

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        """Read the weights of a `CLIPModel` and, where the variant has one, a `tokenizer.json`."""
        net = _clip.load(variant.config, files["checkpoint"])
        if "tokenizer" not in files:
            return cls(variant, net, _clip.openai_tokenizer())
        length: int = cast(Any, net).config.text_config.max_position_embeddings
        keeps_end = FORMS[variant.recipe].keeps_end
        make = _clip.tokenizer if keeps_end else _clip.tokenizer_without_end
        return cls(variant, net, make(files["tokenizer"], length))

    def prepare_image(self, image: Image.Image) -> Tensor:
        """Resize the shortest side as the form does, crop the centre, normalise: (3, S, S)."""
        return _clip.pixels_of(image, self.image_size, self.form.resize)

    def prepare_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise, prefix and all, cut at 77 tokens: input_ids (U, L)."""
        return {"input_ids": self.tokenize([self.form.prefix + prompt for prompt in prompts])}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Score as the form does, (B,); differentiable in the pixels, with no slope where it is floored."""
        images = _clip.encode_images(self.net, inputs["pixel_values"])[inputs["image_index"]]
        prompts = _clip.encode_prompts(self.net, inputs["input_ids"])[inputs["text_index"]]
        scores = self.form.scale * (images * prompts).sum(-1)
        if self.form.is_logit:
            scores = scores * cast(Any, self.net).logit_scale.exp()
        return scores if self.form.floor is None else scores.clamp(min=self.form.floor)
