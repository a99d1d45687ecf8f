"""Images made smaller before they travel, as the reward would make them."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rewardzoo import RewardClient
from rewardzoo.errors import RequestError
from rewardzoo.resize import PILLOW, ShortestAndCrop

STEP = ShortestAndCrop(16)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sent(server: Any) -> list[Any]:
    return [image for message in server.seen for image in message.tensors["images"]]


@pytest.fixture
def telling(server: Any) -> Any:
    server.tells = {"resize": str(STEP)}
    return server


def test_pixels_travel_as_the_declared_step_leaves_them_and_provenance_tells_of_it(telling) -> None:
    image = noise(40, 24)
    with RewardClient(telling.url, reward="sum", downscale=True) as client:
        result = client.score_result([image] * 3, "a")
    assert result.provenance == {"recipe": "sum", "downscale": str(STEP)}
    expected = np.asarray(STEP(Image.fromarray(image)))
    assert len(sent(telling)) == 3
    for got in sent(telling):
        np.testing.assert_array_equal(got, expected)
    assert result.scores.tolist() == [float(expected.sum())] * 3


def test_images_travel_whole_unless_it_is_asked_for(telling) -> None:
    with RewardClient(telling.url, reward="sum") as client:
        result = client.score_result([noise(40, 24)], "a")
    np.testing.assert_array_equal(sent(telling)[0], noise(40, 24))
    assert "downscale" not in result.provenance


@pytest.mark.parametrize("tells", [{}, {"resize": "lanczos shortest 16, crop rounded, Pillow 1.0"}])
def test_where_the_server_declares_no_step_that_is_known_here_images_travel_whole(server, tells) -> None:
    server.tells = tells
    with RewardClient(server.url, reward="sum", downscale=True) as client:
        result = client.score_result([noise(40, 24)], "a")
    np.testing.assert_array_equal(sent(server)[0], noise(40, 24))
    assert "downscale" not in result.provenance


def test_what_the_step_would_enlarge_and_files_travel_as_they_are(telling) -> None:
    small, thin = noise(8, 8), noise(8, 900)
    file = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(file, "PNG")
    with RewardClient(telling.url, reward="sum", downscale=True) as client:
        result = client.score_result([small, thin, noise(16, 16), file.getvalue()], "a")
    assert "downscale" not in result.provenance
    shapes = sorted("file" if isinstance(x, bytes) else str(x.shape) for x in sent(telling))
    assert shapes == ["(16, 16, 3)", "(8, 8, 3)", "(8, 900, 3)", "file"]


def test_another_release_of_pillow_is_refused_with_both_versions(server) -> None:
    server.tells = {"resize": str(STEP).replace(PILLOW, "9.9")}
    with (
        RewardClient(server.url, reward="sum", downscale=True) as client,
        pytest.raises(RequestError, match=rf"Pillow 9\.9.*{PILLOW}"),
    ):
        client.score([noise(40, 24)], "a")
    assert not server.seen


@pytest.mark.parametrize("joins", [True, False])
def test_several_rewards_of_one_step_get_the_same_small_images(telling, joins) -> None:
    telling.joins = joins
    with RewardClient(telling.url, downscale=True) as client:
        result = client.score_result([noise(40, 24)], "a", reward=["sum", "double"])
    assert {image.shape for image in sent(telling)} == {(16, 16, 3)}
    assert len(telling.seen) == (1 if joins else 2)
    assert result.parts["sum"].provenance["downscale"] == str(STEP)
    assert result.parts["double"].provenance["downscale"] == str(STEP)


def test_a_copy_of_the_client_downscales_too(telling) -> None:
    client = RewardClient(telling.url, reward="sum", downscale=True)
    with pickle.loads(pickle.dumps(client)) as client:  # noqa: S301
        client.score([noise(40, 24)], "a")
    assert sent(telling)[0].shape == (16, 16, 3)
