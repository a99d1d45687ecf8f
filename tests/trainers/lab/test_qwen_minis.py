from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rewardzoo.rewards import hpsv3, load
from rewardzoo.rewards._critic import alignment_question
from rewardzoo.rewards._reflection import reflection_question
from rewardzoo.rewards._vlm import Turn, VisionLanguageModel
from rewardzoo.rewards._yesno import spellings, token_of
from rewardzoo.rewards.parm import POTENTIAL_QUESTION, clarity_question
from rewardzoo.trainers.lab.pair_batches import PairStream
from rewardzoo.trainers.lab.prompts import VOCABULARY
from rewardzoo.trainers.lab.qwen_minis import (
    QwenProbes,
    build,
    hpsv3_loss,
    row_by_row,
    to_patches,
    train_hpsv3,
    write_base,
)
from rewardzoo.trainers.lab.training import GRID, SIZE, preference_accuracy


@pytest.fixture(scope="module")
def shipped() -> Any:
    return load("hpsv3:mini", device="cpu")


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    return build(tmp_path_factory.mktemp("processor"))


def test_patches_are_those_of_the_models_own_preprocessing(vlm) -> None:
    images = next(iter(PairStream(2, 0, SIZE, GRID))).images
    for image, patches in zip(images, to_patches(images), strict=True):
        prepared = vlm.prepare_image(Image.fromarray(image))
        assert prepared["image_grid_thw"].tolist() == [1, GRID, GRID]
        torch.testing.assert_close(patches, prepared["pixel_values"], atol=1e-6, rtol=0)


def test_patches_are_brought_into_the_order_of_rows() -> None:
    images = next(iter(PairStream(1, 0, SIZE, GRID))).images
    patches = row_by_row(to_patches(images))[0].view(GRID, GRID, 3, 2, SIZE // GRID, SIZE // GRID)
    picture = patches[:, :, :, 0].permute(2, 0, 3, 1, 4).reshape(3, SIZE, SIZE)
    pixels = torch.from_numpy(images[0]).permute(2, 0, 1).float()
    for channel, known in zip(picture, pixels, strict=True):
        assert torch.corrcoef(torch.stack([channel.flatten(), known.flatten()]))[0, 1] > 0.9999


@pytest.mark.parametrize(
    ("question", "around"),
    [
        (hpsv3.INSTRUCTION.format(text_prompt="{}"), 4),
        (alignment_question("{}"), 2),
        (reflection_question("{}"), 2),
        (clarity_question("{}"), 2),
        (POTENTIAL_QUESTION, 1),
    ],
)
def test_what_stands_around_a_prompt_is_one_token_a_stretch(vlm, question: str, around: int) -> None:
    prompt = "A red circle, left of four zebras" if "{}" in question else ""
    chat = vlm.chat([Turn("user", question.format(prompt), image=True)])
    ids = vlm.encode(chat)
    unknown = vlm.tokenizer.unk_token_id
    # In front the turns and the image's three tokens, behind it where the answer begins.
    assert len(ids) == 4 + around + len(prompt.replace(",", " ,").split()) + 1
    assert ids.count(unknown) == ("zebras" in prompt)


def test_the_vocabulary_has_all_words_of_the_lab_and_the_answers(vlm) -> None:
    assert vlm.tokenizer.unk_token_id not in vlm.encode(" ".join(VOCABULARY))
    for word in ("yes", "no"):
        assert token_of(vlm.tokenizer, word) in spellings(vlm.tokenizer, [word])
        assert len(spellings(vlm.tokenizer, [word])) == 2  # capitalised, too
        assert vlm.token_id(word) != vlm.token_id(word.capitalize())


def test_the_loss_of_the_shipped_mini_is_low_and_most_pairs_right(shipped) -> None:
    batch = next(iter(PairStream(8, 5, SIZE, GRID)))
    probes = QwenProbes(shipped.net.vlm)
    with torch.no_grad():
        for progress in (0.0, 0.9):
            loss, right = hpsv3_loss(shipped.net, probes, batch, progress)
            assert right > 0.8
            assert (loss > 1) == (progress == 0)  # the probes count to begin with


def test_two_steps_of_training_make_a_mini_that_loads(tmp_path: Path) -> None:
    train_hpsv3(tmp_path, 2, 4, 0)
    model = load("hpsv3:mini", device="cpu", weights=tmp_path)
    assert 0 <= preference_accuracy(model, 4, seed=0)["overall"] <= 1


def test_the_base_is_a_critic_that_can_be_asked_with_the_body_of_the_mini(tmp_path: Path, shipped) -> None:
    write_base(tmp_path)
    critic: Any = load("orm:llava-onevision-7b", device="cpu", weights=tmp_path)
    known = shipped.net.vlm.model.model.state_dict()
    assert all(torch.equal(weight, known[key]) for key, weight in critic.vlm.model.model.state_dict().items())
    (score,) = critic.score([Image.new("RGB", (64, 64), "red")], ["a red square"])
    assert 0 < score < 1
