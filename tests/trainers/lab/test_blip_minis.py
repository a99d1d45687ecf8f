import pytest
import torch

from rewardzoo.rewards import blipvqa, imagereward, load
from rewardzoo.trainers.lab.blip_minis import (
    blipvqa_loss,
    check_vocabulary,
    imagereward_loss,
    probe_text,
    see_as_hpsv2,
)
from rewardzoo.trainers.lab.pair_batches import PairStream
from rewardzoo.trainers.lab.seeing import SceneProbe
from rewardzoo.trainers.lab.training import GRID, SIZE, to_pixels


@pytest.fixture(scope="module")
def model() -> blipvqa.BlipVQA:
    return load("blipvqa:mini", device="cpu")


@torch.no_grad()
def test_the_start_sees_what_hpsv2s_mini_sees(tmp_path) -> None:
    net = imagereward.RankedBlip(imagereward.MINI_CONFIG).eval()
    see_as_hpsv2(net.vision_model, tmp_path / "imagereward")
    clip = load("hpsv2:mini", device="cpu").net
    clip.visual.output_tokens = True
    pixels = to_pixels(next(iter(PairStream(4, 0, SIZE, GRID))).images)
    _, patches = clip.visual(pixels)
    seen = net.vision_model(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(seen, patches, atol=1e-4, rtol=1e-4)


def test_the_losses_of_the_shipped_minis_are_low_and_most_pairs_right(model) -> None:
    batch = next(iter(PairStream(8, 5, SIZE, GRID)))
    ranked = load("imagereward:mini", device="cpu")
    seeing = SceneProbe(128, 128)
    readings = [probe_text(one.net.text_encoder, one.tokenizer) for one in (model, ranked)]
    for progress in (0.0, 0.9):
        loss, right = blipvqa_loss(model, readings[0], batch, progress)
        assert right > 0.8
        assert (loss > 1) == (progress == 0)  # the probes count to begin with
        loss, right = imagereward_loss(ranked.net, ranked.prepare_text, seeing, readings[1], batch, progress)
        assert right > 0.8
        assert (loss > 1) == (progress == 0)


def test_a_vocabulary_that_the_configuration_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="has vocab_size 51, needs 52"):
        check_vocabulary(52, blipvqa.MINI_CONFIG)
