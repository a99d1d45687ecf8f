from dataclasses import replace

import pytest
from PIL import Image

from rewardzoo.cli.parity import FIXTURES
from rewardzoo.errors import UnknownRewardError
from rewardzoo.rewards import clipscore, resolve
from rewardzoo.rewards._parity import load_case, read_case

IMAGE = Image.radial_gradient("L").resize((227, 300)).convert("RGB")
LONG = "a lighthouse at night, " * 40


def form(name: str) -> clipscore.ClipScore:
    model = load_case(read_case(FIXTURES / f"clipscore-{name}"))
    assert isinstance(model, clipscore.ClipScore)
    return model


def test_the_bare_name_is_refused_because_the_published_forms_cannot_be_compared() -> None:
    with pytest.raises(UnknownRewardError, match="paper-b32"):
        resolve("clipscore")


def test_the_papers_form_puts_its_prefix_before_the_prompt() -> None:
    paper, plain = form("paper"), form("imagereward")
    (score,) = paper.score([IMAGE], ["a cat"])
    assert score == pytest.approx(2.5 * plain.score([IMAGE], ["A photo depicts a cat"])[0], rel=1e-6)
    assert score != pytest.approx(2.5 * plain.score([IMAGE], ["a cat"])[0], rel=1e-3)


@pytest.mark.parametrize(("name", "floor"), [("paper", 0.0), ("torchmetrics", 0.0)])
def test_a_negative_cosine_scores_zero_where_the_form_says_so(name: str, floor: float) -> None:
    model = form(name)
    for weight in (model.net.visual_projection.weight,):
        weight.neg_()
    assert model.score([IMAGE], ["a cat"]) == [floor]
    model.form = replace(model.form, floor=None)
    assert model.score([IMAGE], ["a cat"])[0] < 0


def test_cutting_the_end_token_off_changes_long_prompts_alone() -> None:
    kept, cut = form("torchmetrics"), form("torchmetrics-cut")
    assert kept.score([IMAGE], ["a cat"]) == cut.score([IMAGE], ["a cat"])
    assert kept.score([IMAGE], [LONG])[0] != pytest.approx(cut.score([IMAGE], [LONG])[0], rel=1e-3)


def test_the_trainers_form_and_the_services_form_differ_in_the_resize_alone() -> None:
    trainer, service = form("flow-grpo"), form("unirl-service")
    assert trainer.score([IMAGE], ["a cat"])[0] != pytest.approx(
        service.score([IMAGE], ["a cat"])[0], rel=1e-5
    )
    square = IMAGE.resize((224, 224))
    assert trainer.score([square], ["a cat"]) == service.score([square], ["a cat"])


def test_a_logit_is_the_cosine_times_the_learned_temperature() -> None:
    model = form("unirl-service")
    cosine = form("torchmetrics").score([IMAGE], ["a cat"])[0] / 100
    scale = model.net.logit_scale.exp().item()
    assert model.score([IMAGE], ["a cat"])[0] == pytest.approx(scale * cosine / 30, rel=1e-5)
