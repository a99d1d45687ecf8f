"""LAION's aesthetic predictor v2: a linear head on CLIP ViT-L/14 rates a picture from about 1 to 10.

Source of the recipe: christophschuhmann/improved-aesthetic-predictor, `simple_inference.py`. The prompt
is not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor, nn

from rewardzoo.resize import ShortestAndCrop
from rewardzoo.rewards import _clip
from rewardzoo.rewards._heads import LinearHead
from rewardzoo.rewards._model import RewardModel
from rewardzoo.rewards._spec import HubFile, RewardSpec, Variant
from rewardzoo.rewards._weights import load_strictly, read_checkpoint


class Aesthetic(RewardModel):
    """LAION aesthetic predictor v2."""

    spec = RewardSpec(
        name="aesthetic",
        title="LAION aesthetic predictor v2",
        paper="https://laion.ai/blog/laion-aesthetics/",
        code_license="Apache-2.0",
        score_range=(1.0, 10.0),
        variants=(
            Variant(
                "v2",
                recipe="aesthetic/v2",
                files={
                    # The hash is that of sac+logos+ava1-l14-linearMSE.pth in the authors' own repository,
                    # which is not on the hub; so it pins the file, whatever the branch holds.
                    "checkpoint": HubFile(
                        "birder-project/aesthetic-predictor",
                        "openai-clip_aesthetic-predictor.pt",
                        "main",
                        "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
                    ),
                    "clip": HubFile(
                        "openai/clip-vit-large-patch14",
                        "model.safetensors",
                        "32bd64288804d66eefd0ccbe215aa642df71cc41",
                    ),
                },
                weights_license="Apache-2.0 (head), unknown (CLIP)",
                config=_clip.VIT_L_14,
                resize=ShortestAndCrop(224),
            ),
        ),
        uses_prompt=False,
    )

    def __init__(self, variant: Variant, net: RatedVision) -> None:
        super().__init__(variant, net)
        self.image_size: int = net.clip.config.image_size

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        """Read the head as its authors saved it, and the image tower of a `CLIPModel`'s checkpoint."""
        head = LinearHead(cast(int, variant.config["projection_dim"]))
        load_strictly(head, read_checkpoint(files["checkpoint"]), files["checkpoint"])
        return cls(variant, RatedVision(_clip.load_vision(variant.config, files["clip"]), head))

    def prepare_image(self, image: Image.Image) -> Tensor:
        """Resize the shortest side, crop the centre, normalise: (3, S, S)."""
        return _clip.pixels_of(image, self.image_size, "torchvision")

    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Stack the pixels: pixel_values, one row a distinct image, and image_index (B,)."""
        return {"pixel_values": torch.stack(list(images)), "image_index": torch.tensor(image_index)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Rating of each image, (B,); differentiable in the pixels."""
        ratings: Tensor = self.net(inputs["pixel_values"])
        return ratings[inputs["image_index"]]


class RatedVision(nn.Module):
    """CLIP's image tower with its projection, and the head on the unit vector that it gives."""

    def __init__(self, clip: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.clip: Any = clip
        self.head = head

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N,)."""
        embeddings = F.normalize(self.clip(pixel_values=pixel_values).image_embeds, dim=-1)
        ratings: Tensor = self.head(embeddings)
        return ratings[:, 0]
