"""What every reward promises, whichever it is."""

import numpy as np
import pytest
import torch
from PIL import Image

from rewardzoo.errors import ItemError
from rewardzoo.rewards import RewardModel


def test_a_score_does_not_depend_on_its_neighbours_or_the_batch_size(
    reward: RewardModel, pictures, prompts
) -> None:
    together = np.array(reward.score(pictures, prompts))
    alone = np.array([reward.score([im], [p])[0] for im, p in zip(pictures, prompts, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=1e-5)


def test_a_reversed_batch_gives_reversed_scores(reward: RewardModel, pictures, prompts) -> None:
    there = np.array(reward.score(pictures, prompts))
    back = np.array(reward.score(pictures[::-1], prompts[::-1]))[::-1]
    np.testing.assert_allclose(there, back, atol=1e-5, rtol=1e-5)
    assert there.std() > 1e-3, "scores that hardly differ would prove nothing"


def test_scores_depend_on_the_image_and_on_the_prompt(reward: RewardModel, pictures) -> None:
    base, other_image, other_prompt = reward.score(
        [pictures[0], pictures[6], pictures[0]], ["a red circle", "a red circle", "two blue square"]
    )
    assert base != pytest.approx(other_image, abs=1e-6)
    assert base != pytest.approx(other_prompt, abs=1e-6)


def test_a_repeated_prompt_is_encoded_once(reward: RewardModel, pictures) -> None:
    batch = reward.prepare(pictures[:4], ["a", "red circle", "a", "a"])
    assert {t.shape[0] for t in batch.text.values()} == {2}
    assert batch.text_index.tolist() == [0, 1, 0, 0]


def test_more_items_than_one_forward_takes_are_split(reward: RewardModel, pictures, prompts) -> None:
    n = reward.spec.max_batch + 3
    images, texts = (pictures * 2)[:n], (prompts * 2)[:n]
    np.testing.assert_allclose(
        reward.score(images, texts)[:3], reward.score(images[:3], texts[:3]), atol=1e-5
    )


def test_no_items_give_no_scores(reward: RewardModel) -> None:
    assert reward.score([], []) == []


def test_one_prompt_for_two_images_is_refused_with_both_lengths(reward: RewardModel, pictures) -> None:
    with pytest.raises(ValueError, match="2 images and 1 prompts"):
        reward.score(pictures[:2], ["a"])


def test_a_bad_image_fails_alone(reward: RewardModel, pictures) -> None:
    bad = [pictures[0], np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3), np.float32), pictures[1]]
    scores = reward.score_items(bad, ["a"] * 4)
    assert [isinstance(s, ItemError) for s in scores] == [False, True, True, False]
    assert "(0, 4, 3)" in str(scores[1])
    assert "float32" in str(scores[2])
    assert scores[0] == pytest.approx(reward.score([pictures[0]], ["a"])[0], abs=1e-5)
    with pytest.raises(ItemError, match="item 1"):
        reward.score(bad, ["a"] * 4)


def test_a_score_that_overflows_is_an_error_and_not_a_number(reward: RewardModel, pictures) -> None:
    batch = reward.prepare(pictures[:2], ["a", "a"])
    first, second = batch.scatter([float("nan"), 1.0])
    assert isinstance(first, ItemError)
    assert second == 1.0


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_pil_images_of_any_mode_are_taken_as_rgb(reward: RewardModel, pictures, mode: str) -> None:
    image = Image.fromarray(pictures[0]).convert(mode)
    expected = reward.score([np.asarray(image.convert("RGB"))], ["a red circle"])
    assert reward.score([image], ["a red circle"]) == expected


def test_the_gradient_in_the_pixels_equals_finite_differences(reward: RewardModel, pictures, prompts) -> None:
    batch = reward.prepare(pictures[:2], prompts[:2]).to(reward.device, torch.float64)
    reward.to(reward.device, torch.float64)
    try:
        pixels = batch.pixels["pixel_values"].requires_grad_()
        (gradient,) = torch.autograd.grad(reward.forward(batch).sum(), pixels)
        direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        step = 1e-5

        def moved(sign: int) -> torch.Tensor:
            with torch.no_grad():
                batch.pixels["pixel_values"] = pixels + sign * step * direction
                return reward.forward(batch).sum()

        slope = (moved(1) - moved(-1)) / (2 * step)
        assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5)
        assert abs(slope.item()) > 1e-6
    finally:
        reward.to(reward.device, torch.float32)


def test_provenance_says_what_a_score_rests_on(reward: RewardModel) -> None:
    given = reward.provenance()
    assert given["reward"] == reward.spec.name
    assert given["dtype"] == "float32"
    assert given["recipe"].startswith(reward.spec.name)
