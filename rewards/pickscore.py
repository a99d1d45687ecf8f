"""PickScore: a CLIP ViT-H/14 tuned on the choices of users; the score is its scaled cosine.

Paper: arXiv 2305.01569. Source of the recipe: yuvalkirstain/PickScore, `README.md`, with the pinned
`transformers` 4.27.3, whose image processor works with PIL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

from PIL import Image
from torch import Tensor, nn

from rewardzoo.resize import ShortestAndCrop
from rewardzoo.rewards import _clip
from rewardzoo.rewards._model import PairReward
from rewardzoo.rewards._spec import HubFile, PackagedFile, RewardSpec, Variant

_RECIPE = "pickscore/v1"


class PickScore(PairReward):
    """PickScore v1."""

    spec = RewardSpec(
        name="pickscore",
        title="PickScore",
        paper="arXiv:2305.01569",
        code_license="MIT",
        score_range=(10.0, 30.0),
        variants=(
            Variant(
                "v1",
                recipe=_RECIPE,
                files={
                    "checkpoint": HubFile(
                        "yuvalkirstain/PickScore_v1",
                        "model.safetensors",
                        "a4e4367c6dfa7288a00c550414478f865b875800",
                    ),
                    "tokenizer": HubFile(
                        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
                        "tokenizer.json",
                        "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
                    ),
                },
                weights_license="unknown",
                config=_clip.VIT_H_14,
                resize=ShortestAndCrop(224, round_corner=False),
            ),
            Variant(
                "mini",
                recipe=_RECIPE,
                files={
                    "checkpoint": PackagedFile("minis/pickscore/model.safetensors"),
                    "tokenizer": PackagedFile("minis/pickscore/tokenizer.json"),
                },
                weights_license="Apache-2.0",
                config=_clip.MINI,
                resize=ShortestAndCrop(64, round_corner=False),
            ),
        ),
    )

    def __init__(self, variant: Variant, net: nn.Module, tokenize: _clip.Tokenize) -> None:
        super().__init__(variant, net)
        self.tokenize = tokenize
        self.image_size: int = cast(Any, net).config.vision_config.image_size

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        """Read the weights of a `CLIPModel` and a `tokenizer.json`."""
        net = _clip.load(variant.config, files["checkpoint"])
        length: int = cast(Any, net).config.text_config.max_position_embeddings
        return cls(variant, net, _clip.tokenizer(files["tokenizer"], length))

    def prepare_image(self, image: Image.Image) -> Tensor:
        """Resize the shortest side, crop the centre, normalise: (3, S, S)."""
        return _clip.pixels_of(image, self.image_size, "transformers")

    def prepare_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise, cut at 77 tokens with the end token kept: input_ids (U, L)."""
        return {"input_ids": self.tokenize(prompts)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Cosine of image and prompt times the temperature learned, (B,); differentiable in the pixels."""
        images = _clip.encode_images(self.net, inputs["pixel_values"])[inputs["image_index"]]
        prompts = _clip.encode_prompts(self.net, inputs["input_ids"])[inputs["text_index"]]
        scale: Tensor = cast(Any, self.net).logit_scale.exp()
        return scale * (images * prompts).sum(-1)
