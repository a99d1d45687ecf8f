import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image

from rewardzoo.cli.parity import FIXTURES
from rewardzoo.rewards import resolve
from rewardzoo.rewards._parity import load_case, read_case


@pytest.fixture(scope="module")
def reward():
    return load_case(read_case(FIXTURES / "pickscore"))


def test_the_score_is_the_cosine_times_the_learned_temperature(reward) -> None:
    image, prompts = Image.effect_noise((90, 60), 80).convert("RGB"), ["a red circle", "", "red " * 120]
    pixels = reward.prepare_image(image)[None]
    with torch.no_grad():
        picture = reward.net.get_image_features(pixel_values=pixels).pooler_output
        texts = reward.net.get_text_features(input_ids=reward.tokenize(prompts)).pooler_output
    expected = math.exp(reward.net.logit_scale) * F.cosine_similarity(picture, texts)
    assert reward.score([image] * 3, prompts) == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_bare_name_means_the_released_weights_at_a_pinned_commit() -> None:
    _, variant = resolve("pickscore")
    assert variant.name == "v1"
    assert all(len(file.revision) == 40 for file in variant.files.values())
