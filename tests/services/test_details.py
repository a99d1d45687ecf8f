"""Metadata in and details out are the same whichever client asks, and as the model itself has them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from rewardzoo import LocalRewards, RewardClient

triton = pytest.importorskip("tritonclient.http")

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
PROMPTS = [f"prompt {i}" for i in range(11)]
NOTES: list[dict[str, Any]] = [
    {"say": i / 3} if i % 3 == 0 else {"say": {"é": [i, None, float("nan")]}} if i % 3 == 1 else {}
    for i in range(11)
]
NOTES[4] = {"refuse": "no box"}


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_own_client_reward_client_and_local_rewards_agree_to_the_bit(
    listening: Any, model: Any, binary: bool
) -> None:
    with listening(model) as url:
        with RewardClient(url) as client:
            ours = client.score_result(IMAGES, PROMPTS, reward="fake:v1", metadata=NOTES)
        inputs = [
            triton.InferInput("images", list(IMAGES.shape), "UINT8"),
            triton.InferInput("prompts", [11], "BYTES"),
            triton.InferInput("metadata", [11], "BYTES"),
        ]
        texts = [json.dumps(note) for note in NOTES]
        inputs[0].set_data_from_numpy(IMAGES, binary_data=binary)
        for tensor, values in zip(inputs[1:], (PROMPTS, texts), strict=True):
            tensor.set_data_from_numpy(
                np.array([v.encode() for v in values], dtype=np.object_), binary_data=binary
            )
        names = ("scores", "errors", "details")
        with triton.InferenceServerClient(url.removeprefix("http://")) as other:
            wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
            theirs = other.infer("fake:v1", inputs, outputs=wanted)
            default = other.infer("fake:v1", inputs)
    for answer in (theirs, default):
        scores = np.array(answer.as_numpy("scores"), dtype=np.float32)
        np.testing.assert_array_equal(scores, ours.scores)
        details = [json.loads(text) if text else {} for text in answer.as_numpy("details")]
        assert details == list(ours.details)
    local = LocalRewards.of([model]).score_result(IMAGES, PROMPTS, metadata=NOTES)
    np.testing.assert_array_equal(local.scores, ours.scores)
    assert local.details == ours.details
    assert {i: str(e) for i, e in local.errors.items()} == {i: str(e) for i, e in ours.errors.items()}
    assert ours.details[0] == {"said": 0.0}
    assert ours.details[3] == {"said": 1.0}
    assert ours.details[7] == {"said": {"é": [7, None, None]}}
    assert ours.details[2] == ours.details[4] == {}
    assert list(ours.errors) == [4]


def test_a_large_request_is_split_into_batches_and_its_details_stay_with_their_items(
    listening: Any, model: Any
) -> None:
    many = [np.full((4, 4 + i % 3, 3), i, dtype=np.uint8) for i in range(200)]
    with listening(model) as url, RewardClient(url) as client:
        result = client.score_result(many, "a", reward="fake:v1", metadata=[{"say": i} for i in range(200)])
    assert [d["said"] for d in result.details] == list(range(200))
    np.testing.assert_allclose(result.scores, np.arange(200) / 255, rtol=1e-6)
    assert len(model.sizes) >= 25
