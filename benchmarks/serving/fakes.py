"""Rewards that cost nothing or a known time, so that what is left is the service's own.

`bentoml serve benchmarks.serving.fakes:Fake` hosts them by the same factory as the real ones.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rewardzoo.errors import ItemError
from rewardzoo.rewards import Batch, Picture, RewardModel, RewardSpec, Variant
from rewardzoo.rewards._batch import Each, Part
from rewardzoo.services import make_service

BATCH_SECONDS = 0.010
ITEM_SECONDS = {"noop": 0.0, "slow": 0.001, "slower": 0.004}
POISON = "poison"


def fake(name: str) -> Variant:
    return Variant(name, "first-pixel", {}, "Apache-2.0")


class FakeReward(RewardModel):
    """Scores the first pixel, read as a number: r * 65,536 + g * 256 + b. `POISON` breaks the forward.

    `noop` is as fast as Python is; the others wait as a GPU would work, `ITEM_SECONDS` an item.
    """

    spec: ClassVar[RewardSpec] = RewardSpec(
        name="fake",
        title="First pixel",
        paper="none",
        code_license="Apache-2.0",
        score_range=(0.0, 2.0**24),
        variants=tuple(map(fake, ITEM_SECONDS)),
        max_batch=64,
    )

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        return cls(variant, nn.Linear(1, 1))

    def prepare_items(
        self,
        images: Sequence[Picture],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        *,
        each: Each = map,
    ) -> list[Part | ItemError]:
        """Decode, and skip what a real reward does with pixels: it is not what is measured here."""

        def one(i: int) -> Part | ItemError:
            try:
                red, green, blue = np.asarray(images[i])[0, 0].tolist()
            except ItemError as error:
                return error
            return Part((red << 16) + (green << 8) + blue, prompts[i])

        return list(each(one, range(len(images))))

    def collate_parts(self, parts: Sequence[Part]) -> Batch:
        values = torch.tensor([part.image for part in parts])
        rows = tuple(range(len(parts)))
        return Batch(len(parts), rows, {}, {"value": values}, [part.asked for part in parts])

    def prepare_image(self, image: Image.Image) -> Any:
        raise NotImplementedError("prepare_items and collate_parts do all of it")

    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Any]
    ) -> dict[str, Tensor]:
        raise NotImplementedError("prepare_items and collate_parts do all of it")

    def evaluate(self, batch: Batch) -> Any:
        if POISON in batch.asked:
            raise RuntimeError("this prompt breaks the model")
        if spent := ITEM_SECONDS[self.variant.name]:
            time.sleep(BATCH_SECONDS + spent * len(batch))
        return super().evaluate(batch)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return inputs["value"]


def load_fake(name: str, **_: object) -> FakeReward:
    variants = {v.name: v for v in FakeReward.spec.variants}
    return FakeReward.load(variants[name.partition(":")[2]], {})


def resolve_fake(name: str) -> tuple[type[FakeReward], Variant]:
    return FakeReward, load_fake(name).variant


names = [f"fake:{name}" for name in ITEM_SECONDS]
Fake = make_service("Fake", names, load=load_fake, resolve=resolve_fake)
