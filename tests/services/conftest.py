from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from torch import Tensor, nn

from rewardzoo.rewards import Batch, RewardModel, RewardSpec, Variant
from rewardzoo.services import make_service

RED, GREY = (255, 0, 0), (128, 128, 128)


class FakeReward(RewardModel):
    """Scores the mean of the pixels, in [0, 1]; the prompt "raise" makes the device stage raise."""

    spec: ClassVar[RewardSpec] = RewardSpec(
        name="fake",
        title="Mean pixel",
        paper="none",
        code_license="Apache-2.0",
        score_range=(0.0, 1.0),
        variants=(
            Variant("v1", "mean", {}, "Apache-2.0"),
            Variant("v2", "mean", {}, "Apache-2.0"),
            Variant("mini", "mean", {}, "Apache-2.0"),
        ),
        max_batch=8,
    )

    def __init__(self, variant: Variant) -> None:
        super().__init__(variant, nn.Linear(1, 1))
        self.go = threading.Event()
        self.go.set()
        self.broken: Exception | None = None
        self.sizes: list[int] = []

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        return cls(variant)

    def prepare_image(self, image: Image.Image) -> Tensor:
        pixels = np.asarray(image.resize((4, 4)), dtype=np.float32)
        return torch.from_numpy(pixels / 255).permute(2, 0, 1)

    def prepare_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"bad": torch.tensor([prompt == "raise" for prompt in prompts])}

    def forward(self, batch: Batch) -> Tensor:
        self.go.wait(10)
        self.sizes.append(batch.size)
        if self.broken is not None:
            raise self.broken
        if batch.text["bad"][batch.text_index].any():
            raise RuntimeError("this prompt breaks the model")
        return batch.pixels["pixel_values"].mean(dim=(1, 2, 3))


def load_fake(name: str, **_: object) -> FakeReward:
    variant = {v.name: v for v in FakeReward.spec.variants}[name.partition(":")[2]]
    return FakeReward(variant)


@pytest.fixture
def model() -> FakeReward:
    return load_fake("fake:v1")


@pytest.fixture
def png() -> Callable[..., bytes]:
    def encode(color: tuple[int, int, int] = RED, size: int = 8) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (size, size), color).save(file, "PNG")
        return file.getvalue()

    return encode


Serving = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Serving:
    """A started BentoML service in this process; keywords become its `REWARDZOO_*`."""

    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "True")
    # BentoML's metrics can be registered once a process, and tests make many apps.
    monkeypatch.setenv("BENTOML_CONFIG_OPTIONS", "services.Test.metrics.enabled=false")

    @contextmanager
    def serve(model: RewardModel | None = None, **settings: Any) -> Iterator[TestClient]:
        for key, value in {"rewards": "fake:v1", **settings}.items():
            monkeypatch.setenv(f"REWARDZOO_{key.upper()}", str(value))
        load = (lambda *_, **__: model) if model is not None else load_fake
        with TestClient(make_service("Test", load=load).to_asgi(), raise_server_exceptions=False) as client:
            yield client

    return serve
