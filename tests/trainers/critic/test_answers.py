"""The loss on answers, on the parity cases' tiny critics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import logit

from rewardzoo.cli.parity import FIXTURES
from rewardzoo.rewards._parity import load_case, read_case
from rewardzoo.rewards.parm import PARM
from rewardzoo.trainers.critic.answers import NOTHING, answer_loss, collate


@pytest.fixture(scope="module")
def parm() -> PARM:
    model = load_case(read_case(FIXTURES / "parm-yes-no"))
    assert isinstance(model, PARM)
    return model


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))


def row(stage: str, label: float = 1.0, reason: str = "", prompt: str = "a cat") -> dict[str, Any]:
    return {"prompt": prompt, "stage": stage, "label": label, "reason": reason}


def losses(parm: PARM, picture: Image.Image, *rows: dict[str, Any]) -> torch.Tensor:
    image = parm.prepare_image(picture)
    return answer_loss(parm, collate(parm, [image] * len(rows), rows))


@pytest.mark.parametrize("stage", ["selection", "potential"])
def test_what_is_learned_is_the_very_number_that_is_served(parm, picture, stage: str) -> None:
    notes = {"stage": stage, "clear": stage == "potential"}
    (served,) = parm.score([np.asarray(picture)], ["a cat"], [notes])
    for_yes, for_no = losses(parm, picture, row(stage, 1.0), row(stage, 0.0))
    if stage == "potential":  # the clarity's yes is learned with it, the same in both
        for_yes, for_no = 2 * for_yes, 2 * for_no
    assert (for_no - for_yes).item() == pytest.approx(logit(served), abs=1e-5)


def test_clarity_is_learned_in_the_middle_of_the_dialogue_where_it_is_read(parm, picture) -> None:
    (score,) = parm.score_items([np.asarray(picture)], ["a cat"], [{"stage": "potential"}])
    for_yes, for_no = losses(parm, picture, row("clarity", 1.0), row("clarity", 0.0))
    assert (for_no - for_yes).item() == pytest.approx(logit(score.details["clarity"]), abs=1e-5)


def test_a_label_between_is_learned_as_that_chance(parm, picture) -> None:
    yes, no, between = losses(parm, picture, row("selection", 1), row("selection", 0), row("selection", 0.3))
    assert between.item() == pytest.approx(0.3 * yes.item() + 0.7 * no.item(), rel=1e-5)


def test_a_reflection_is_learned_word_by_word_until_its_end(parm, picture) -> None:
    image = parm.prepare_image(picture)
    inputs = collate(parm, [image], [row("reflection", 0.0, "the cat is blue")])
    words = parm.vlm.encode("no, the cat is blue") + parm.vlm.encode("<|im_end|>")
    assert inputs["targets"].tolist() == [words]
    ids = inputs["input_ids"][0]
    at = inputs["read"][0]
    assert ids[at[1:]].tolist() == words[:-1]


def test_rows_of_all_stages_share_a_batch_and_lose_what_they_lose_alone(parm, picture) -> None:
    rows = [
        row("selection", 0.0, prompt="a very long prompt about a cat on a mat"),
        row("clarity"),
        row("potential", 0.0),
        row("reflection", 0.0, "wrong"),
        row("reflection", 1.0),
    ]
    together = losses(parm, picture, *rows)
    alone = torch.cat([losses(parm, picture, one) for one in rows])
    assert torch.allclose(together, alone, atol=1e-5)


def test_what_is_not_an_answer_is_not_learned(parm, picture) -> None:
    image = parm.prepare_image(picture)
    inputs = collate(parm, [image, image], [row("selection"), row("reflection", 0.0, "too blue")])
    first = inputs["targets"][0].tolist()
    assert first == [NOTHING] * (len(first) - 1) + [parm.yes]


def test_some_steps_of_descent_teach_an_answer(picture) -> None:
    critic = load_case(read_case(FIXTURES / "parm-yes-no"))
    assert isinstance(critic, PARM)
    critic.net.requires_grad_(True)
    optimizer = torch.optim.AdamW(critic.net.parameters(), lr=1e-3)
    inputs = collate(critic, [critic.prepare_image(picture)], [row("selection", 1.0)])
    for _ in range(10):
        answer_loss(critic, inputs).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    (score,) = critic.score([np.asarray(picture)], ["a cat"], [{"stage": "selection"}])
    assert score > 0.9
