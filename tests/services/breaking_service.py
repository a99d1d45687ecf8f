"""A service for `bentoml serve` whose device is lost when a prompt says "break"."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from rewardzoo.rewards import Batch, Outcome, RewardModel, RewardSpec, Score, Variant
from rewardzoo.services import make_service

VARIANT = Variant("v1", "none", {}, "Apache-2.0")


class Breaking(RewardModel):
    """Scores 1, with the number of its process as a detail."""

    spec: ClassVar[RewardSpec] = RewardSpec(
        "breaking", "Breaks", "none", "Apache-2.0", (0.0, 1.0), (VARIANT,), max_batch=1
    )

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        return cls(variant, nn.Linear(1, 1))

    def prepare_image(self, image: Image.Image) -> int:
        return 0

    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Any]
    ) -> dict[str, Tensor]:
        return {"items": torch.zeros(len(asked))}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return inputs["items"] + 1

    def evaluate(self, batch: Batch) -> list[Outcome]:
        if "break" in batch.asked:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return [Score(1.0, {"pid": os.getpid()})] * len(batch)


service = make_service(
    "Breaking",
    ["breaking:v1"],
    load=lambda *_, **__: Breaking.load(VARIANT, {}),
    resolve=lambda _: (Breaking, VARIANT),
)
