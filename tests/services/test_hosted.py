"""The stages of scoring a hosted reward's items."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rewardzoo.errors import ItemError
from rewardzoo.rewards import Score
from rewardzoo.services import ServeConfig
from rewardzoo.services.batcher import Item
from rewardzoo.services.host import Host
from rewardzoo.services.hosted import Scoring
from rewardzoo.services.workers import Encoded, Workers

Png = Callable[..., bytes]


def test_files_are_decoded_and_preprocessed_in_parallel(
    model: Any, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    prepare = model.prepare_image
    monkeypatch.setattr(model, "prepare_image", lambda image: (both.wait(10), prepare(image))[1])
    workers = Workers(2)
    items = [Item(png((value, 0, 0)), "a") for value in range(6)]
    parts = Scoring(model, workers).prepare(items)
    workers.stop()
    assert not any(isinstance(part, ItemError) for part in parts)


def test_parallel_preparation_gives_the_scores_and_errors_of_the_model_itself(model: Any, png: Png) -> None:
    workers = Workers(4)
    scoring = Scoring(model, workers)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)
    images: list[Any] = [*pixels, png(), png(size=64)[:-60], pixels[0].copy(), Encoded(png())]
    items = [Item(image, f"prompt {i}", {"say": i}) for i, image in enumerate(images)]
    parts = scoring.prepare(items)
    workers.stop()
    assert [isinstance(part, ItemError) for part in parts] == [False] * 6 + [True] + [False] * 2
    good = [part for part in parts if not isinstance(part, ItemError)]
    assert good[0].image is good[6].image  # equal images are prepared once
    assert good[5].image is good[7].image
    found = scoring.run(scoring.collate(good))
    red = np.full((8, 8, 3), (255, 0, 0), dtype=np.uint8)
    again = model.score([*pixels, red, pixels[0], red], ["x"] * 8)
    assert [outcome.value for outcome in found if isinstance(outcome, Score)] == again


def test_a_reward_with_costs_is_batched_by_the_sizes_of_its_images(
    model: Any, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model), "spec", replace(model.spec, max_batch_cost=100))
    monkeypatch.setattr(type(model), "cost", lambda self, width, height: width * height)
    files = [png(size=8), png(size=5), png(size=5), b"junk"]
    arrays = [np.zeros((6, 10, 3), np.uint8), np.zeros((4, 10, 3), np.uint8)]

    async def main() -> None:
        config = ServeConfig(rewards=["fake:v1"], device="cpu")
        host = Host(config, [model])
        await host.start()
        outcomes = await host.find("fake:v1").score([Item(image, "a") for image in (*files, *arrays)], 10)
        assert [isinstance(outcome, ItemError) for outcome in outcomes] == [False] * 3 + [True] + [False] * 2
        await host.stop()

    asyncio.run(main())
    assert model.sizes == [2, 2, 1]  # 64 + 25 | 25 + junk + 60 | 40: the junk costs 1 and fails


def test_weights_are_loaded_in_the_dtype_that_the_settings_name(model: Any) -> None:
    asked: list[Any] = []

    def load(_: str, **options: Any) -> Any:
        asked.append(options["dtype"])
        return model

    for dtype in ("bfloat16", None):
        config = ServeConfig(rewards=["fake:v1"], device="cpu", dtype=dtype)
        Host.load(config, [], load, lambda _: (type(model), model.variant))
    assert asked == [torch.bfloat16, None]


def test_what_a_reward_costs_by_default_is_one_an_item(model: Any) -> None:
    assert model.cost(4000, 3000) == 1
