from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision.transforms.functional as tv
from PIL import Image

from rewardzoo.errors import UnknownRewardError, WeightsError
from rewardzoo.rewards import hpsv2, load, resolve
from rewardzoo.rewards._images import CLIP_MEAN, CLIP_STD


def test_pixels_equal_torchvisions_resize_of_the_longest_side_and_zero_padding(tiny, pictures) -> None:
    for pixels in pictures[:6]:
        image = Image.fromarray(pixels)
        tensor = tv.to_tensor(image)
        scale = 32 / max(image.size)
        height, width = (max(round(side * scale), 1) for side in tensor.shape[1:])
        tensor = tv.resize(tensor, [height, width], tv.InterpolationMode.BICUBIC, antialias=True)
        down, right = 32 - height, 32 - width
        tensor = tv.pad(tensor, [right // 2, down // 2, right - right // 2, down - down // 2])
        expected = tv.normalize(tensor, list(CLIP_MEAN), list(CLIP_STD))
        torch.testing.assert_close(tiny["hpsv2"].prepare_image(image), expected, atol=1e-6, rtol=0)


def test_without_antialias_a_picture_scores_otherwise_unless_it_needs_no_resize(tiny) -> None:
    old = next(v for v in hpsv2.HPSv2.spec.variants if v.name == "v2.1-no-antialias")
    sharp = hpsv2.HPSv2(
        replace(old, config=tiny["hpsv2"].variant.config), tiny["hpsv2"].net, tiny["hpsv2"].tokenize
    )
    y, x = np.mgrid[:100, :90]
    stripes = Image.fromarray(np.stack([x % 3 * 100, y % 2 * 255, (x + y) % 5 * 50], -1).astype(np.uint8))
    fitting = stripes.crop((0, 0, 32, 20))
    smooth = tiny["hpsv2"].score([stripes, fitting], ["a red circle"] * 2)
    without = sharp.score([stripes, fitting], ["a red circle"] * 2)
    assert abs(smooth[0] - without[0]) > 1e-3
    assert smooth[1] == pytest.approx(without[1], abs=1e-6)


def test_both_recipes_of_a_version_share_its_file() -> None:
    files = {v.name: v.files for v in hpsv2.HPSv2.spec.variants}
    for version in ("v2.0", "v2.1"):
        assert files[version] == files[f"{version}-no-antialias"]
    assert files["v2.0"] != files["v2.1"]


def test_the_bare_name_is_refused_and_the_version_asked_for() -> None:
    with pytest.raises(UnknownRewardError, match=r"hpsv2:v2\.1"):
        resolve("hpsv2")


def test_an_image_whose_longest_side_fits_already_is_still_padded_to_a_square(tiny) -> None:
    assert tiny["hpsv2"].prepare_image(Image.new("RGB", (32, 16))).shape == (3, 32, 32)


def test_the_score_is_the_cosine_of_open_clips_features(tiny, pictures) -> None:
    reward = tiny["hpsv2"]
    pixels = torch.stack([reward.prepare_image(Image.fromarray(p)) for p in pictures[:3]])
    ids = open_clip.get_tokenizer("ViT-H-14")(["a red circle", "", "naïve “quotes”\n"])
    with torch.no_grad():
        expected = F.cosine_similarity(reward.net.encode_image(pixels), reward.net.encode_text(ids))
    scores = reward.score(pictures[:3], ["a red circle", "", "naïve “quotes”\n"])
    assert scores == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_prompt_past_the_context_is_cut_with_its_end_token_kept(tiny) -> None:
    ids = tiny["hpsv2"].prepare_text(["red " * 200])["input_ids"]
    assert ids.shape == (1, 77)
    assert ids[0, -1] == ids.max()


def test_a_checkpoint_that_lacks_a_weight_is_refused(tiny, tmp_path) -> None:
    state = tiny["hpsv2"].net.state_dict()
    del state["logit_scale"]
    torch.save({"state_dict": state}, tmp_path / "damaged.pt")
    with pytest.raises(WeightsError, match="logit_scale"):
        hpsv2.HPSv2.load(tiny["hpsv2"].variant, {"checkpoint": tmp_path / "damaged.pt"})


@pytest.mark.slow
def test_the_full_size_architecture_loads_a_checkpoint_in_upstreams_format(tmp_path, pictures) -> None:
    net = hpsv2.build({})
    assert sum(p.numel() for p in net.parameters()) == 986_109_441
    path = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": {k: v.half() for k, v in net.state_dict().items()}}, path)
    del net
    reward = load("hpsv2:v2.1", device="cpu", weights=path)
    first, second = reward.score([pictures[0], pictures[1]], ["a red circle", "a dog"])
    assert -1 <= first <= 1
    assert reward.score([pictures[1]], ["a dog"])[0] == pytest.approx(second, abs=1e-5)
