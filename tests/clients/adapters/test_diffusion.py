"""DDPO, flow_grpo and verl-omni: trainers whose policy makes the image."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from rewardzoo import ItemsFailedError
from rewardzoo.clients.adapters import ddpo, flow_grpo, verl_omni

IMAGES = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
SUMS = (IMAGES * 255).round().clamp(0, 255).to(torch.uint8).flatten(1).sum(1).tolist()


def test_ddpo_is_called_with_images_prompts_and_metadata(server: Any) -> None:
    # As TRL's DDPOTrainer.compute_rewards and ddpo-pytorch's reward threads call it.
    rewards, metadata = ddpo.reward_function(server.url, "sum")(IMAGES, ("a", "b", "c"), ({}, {}, {}))
    assert torch.as_tensor(rewards).dtype == torch.float32
    assert rewards.tolist() == SUMS
    assert metadata == {}
    array = (IMAGES * 255).round().to(torch.uint8).numpy().transpose(0, 2, 3, 1)
    assert ddpo.reward_function(server.url, "sum")(array, ("a", "b", "c"), ())[0].tolist() == SUMS


def test_ddpo_hands_metadata_on_when_asked_and_returns_the_parts(server: Any) -> None:
    score = ddpo.reward_function(server.url, {"sum": 1.0, "double": 1.0}, with_metadata=True)
    rewards, parts = score(IMAGES[:1], ("a",), ({"nouns": ["cat"]},))
    assert rewards.tolist() == [3 * SUMS[0]]
    assert {name: values.tolist() for name, values in parts.items()} == {
        "sum": [SUMS[0]],
        "double": [2 * SUMS[0]],
    }
    assert server.seen[-1].tensors["metadata"].tolist() == [b'{"nouns": ["cat"]}']


def test_ddpo_never_scores_a_broken_picture(server: Any) -> None:
    images = IMAGES.clone()
    images[1] = torch.nan
    with pytest.raises(ItemsFailedError, match=r"item 1: .*NaN"):
        ddpo.reward_function(server.url, "sum")(images, ("a", "b", "c"), ())
    rewards, _ = ddpo.reward_function(server.url, "sum", on_error="nan")(images, ("a", "b", "c"), ())
    assert np.isnan(rewards).tolist() == [False, True, False]


def test_flow_grpo_gets_scores_by_name_and_their_weighted_sum(server: Any) -> None:
    multi_score = flow_grpo.multi_score(server.url, names={"twice": "double"})
    score = multi_score("cuda", {"sum": 1.0, "twice": 0.25})
    # As scripts/train_sd3.py: executor.submit(reward_fn, images, prompts, metadata, only_strict=True).
    details, rest = score(IMAGES, ["a", "b", "c"], [{}, {}, {}], only_strict=True)
    assert rest == {}
    assert {name: torch.as_tensor(values).float().tolist() for name, values in details.items()} == {
        "sum": SUMS,
        "twice": [2 * s for s in SUMS],
        "avg": [1.5 * s for s in SUMS],
    }


def test_flow_grpo_takes_the_newer_form_with_reference_images(server: Any) -> None:
    score = flow_grpo.multi_score(server.url)("cpu", {"sum": 1.0})
    details, _ = score(IMAGES, ["a", "b", "c"], {}, ref_images=[None, None, None], only_strict=False)
    assert details["avg"].tolist() == SUMS


def test_flow_grpo_normalises_what_is_summed_and_holds_judges_out(server: Any) -> None:
    multi_score = flow_grpo.multi_score(
        server.url, names={"pick": "sum"}, normalize={"pick": "flow_grpo/pickscore"}, held_out=["double"]
    )
    details, _ = multi_score("cpu", {"pick": 2.0})(IMAGES, ["a", "b", "c"], {})
    assert details["avg"] == pytest.approx([2 * s / 26 for s in SUMS])
    assert details["pick"].tolist() == SUMS
    assert details["double"].tolist() == [2 * s for s in SUMS]


def test_verl_omni_awaits_one_uint8_image_or_a_frame_of_a_video(server: Any) -> None:
    pixels = (IMAGES * 255).round().to(torch.uint8)
    config = {"url": server.url, "reward": "sum"}

    def one(image: torch.Tensor, **more: Any) -> dict[str, Any]:
        call = verl_omni.compute_score(
            data_source="x",
            solution_image=image,
            ground_truth="a",
            extra_info={"nouns": []},
            **config,
            **more,
        )
        return asyncio.run(call)

    assert one(pixels[0]) == {"score": SUMS[0]}
    assert one(pixels) == {"score": SUMS[0]}
    assert one(pixels, frame=2, metadata_keys=["nouns"]) == {"score": SUMS[2]}
    assert server.seen[-1].tensors["metadata"].tolist() == [b'{"nouns": []}']
