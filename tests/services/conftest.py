from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from starlette.testclient import TestClient
from torch import Tensor, nn

from rewardzoo.errors import ItemError
from rewardzoo.rewards import Batch, Outcome, RewardModel, RewardSpec, Score, Variant
from rewardzoo.services import make_service

RED, GREY = (255, 0, 0), (128, 128, 128)


class FakeReward(RewardModel):
    """Scores the mean of the pixels, in [0, 1]; the prompt "raise" makes the device stage raise.

    Its details are what `say` in an item's metadata is; without it an item has none. `refuse` there fails
    the item.
    """

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

    def prepare_prompt(self, prompt: str, metadata: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        if "refuse" in metadata:
            raise ItemError(f"the metadata is refused: {metadata['refuse']}")
        return prompt, metadata

    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Any]
    ) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([images[i] for i in image_index])}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return inputs["pixel_values"].mean(dim=(1, 2, 3))

    def evaluate(self, batch: Batch) -> list[Outcome]:
        self.go.wait(10)
        self.sizes.append(batch.size)
        if self.broken is not None:
            raise self.broken
        if any(prompt == "raise" for prompt, _ in batch.asked):
            raise RuntimeError("this prompt breaks the model")
        values = self.forward(batch.inputs).tolist()
        said = [{"said": notes["say"]} if "say" in notes else {} for _, notes in batch.asked]
        return [Score(value, details) for value, details in zip(values, said, strict=True)]


def load_fake(name: str, **_: object) -> FakeReward:
    variant = {v.name: v for v in FakeReward.spec.variants}[name.partition(":")[2]]
    return FakeReward(variant)


def resolve_fake(name: str) -> tuple[type[FakeReward], Variant]:
    return FakeReward, load_fake(name).variant


@pytest.fixture
def make_model() -> Callable[[str], FakeReward]:
    """Make the fake reward of a name."""
    return load_fake


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
Listening = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def make_app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make the ASGI app of a BentoML service; keywords become its `REWARDZOO_*`."""
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "True")

    def make(model: RewardModel | None = None, **settings: Any) -> Any:
        for key, value in {"rewards": "fake:v1", "ui": "off", **settings}.items():
            monkeypatch.setenv(f"REWARDZOO_{key.upper()}", str(value))
        load = (lambda *_, **__: model) if model is not None else load_fake
        return make_service("Test", load=load, resolve=resolve_fake).to_asgi()

    return make


@pytest.fixture
def serving(make_app: Callable[..., Any]) -> Serving:
    """A started service in this process, behind a client that needs no port."""

    @contextmanager
    def serve(model: RewardModel | None = None, **settings: Any) -> Iterator[TestClient]:
        with TestClient(make_app(model, **settings), raise_server_exceptions=False) as client:
            yield client

    return serve


@pytest.fixture
def listening(make_app: Callable[..., Any], free_port: Callable[[], int]) -> Listening:
    """A started service in a thread of this process, for clients of any kind; gives its URL."""

    @contextmanager
    def listen(model: RewardModel | None = None, **settings: Any) -> Iterator[str]:
        port = free_port()
        app = make_app(model, **settings)
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()

    return listen
