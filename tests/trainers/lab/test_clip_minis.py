from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file

from rewardzoo.rewards import _clip, load
from rewardzoo.trainers.lab.clip_minis import contrastive_loss, preference_loss, start, write_clip_mini
from rewardzoo.trainers.lab.pair_batches import PairStream
from rewardzoo.trainers.lab.training import GRID, SIZE, to_pixels, train


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    return start(load("hpsv2:mini", device="cpu").net, seed=3).eval()


@pytest.fixture(scope="module")
def tokenize(net, tmp_path_factory) -> _clip.Tokenize:
    return write_clip_mini(net, tmp_path_factory.mktemp("mini"))


@torch.no_grad()
def test_the_start_sees_and_reads_as_hpsv2s_mini_does(net, tokenize) -> None:
    batch = next(iter(PairStream(16, 4, SIZE, GRID)))
    known = load("hpsv2:mini", device="cpu")
    pixels = to_pixels(batch.images)
    images = known.net.encode_image(pixels, normalize=True)
    prompts = known.net.encode_text(known.tokenize(batch.prompts), normalize=True)
    assert F.cosine_similarity(_clip.encode_images(net, pixels), images).min() > 0.98
    torch.testing.assert_close(_clip.encode_prompts(net, tokenize(batch.prompts)), prompts, atol=1e-5, rtol=0)


def test_a_mini_is_kept_in_16_bits_and_loads_as_a_released_model_does(net, tmp_path) -> None:
    write_clip_mini(net, tmp_path)
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2.5e6
    image = np.zeros((64, 64, 3), np.uint8)
    for name in ("clipscore:mini", "pickscore:mini"):
        assert np.isfinite(load(name, device="cpu", weights=tmp_path).score([image], ["a red circle"])).all()


def test_a_pair_and_its_partner_are_held_apart_by_both_losses(net, tokenize) -> None:
    batch = next(iter(PairStream(8, 5, SIZE, GRID)))
    with torch.no_grad():
        for loss in (contrastive_loss, preference_loss):
            value, right = loss(net, tokenize, batch)
            assert 0 <= value < 2
            assert right > 0.8


def test_training_changes_weights_and_leaves_them_finite(tokenize) -> None:
    net = start(load("hpsv2:mini", device="cpu").net, seed=3)
    before = net.visual_projection.weight.clone()
    train(net, partial(preference_loss, net, tokenize), 2, pairs=4, seed=6, lr=1e-3)
    assert not torch.equal(before, net.visual_projection.weight)
    assert all(weight.isfinite().all() and not weight.requires_grad for weight in net.parameters())
