"""What every reward promises: held against each parity case's model, on its own pairs, and each mini."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rewardzoo.cli.parity import FIXTURES
from rewardzoo.errors import ItemError
from rewardzoo.rewards import Outcome, PairReward, RewardModel, Score, load, specs
from rewardzoo.rewards._parity import detail_difference, find_cases, load_case, read_case

INPUTS = FIXTURES.parent / "inputs"
CASES = [folder.name for folder in find_cases(FIXTURES)]
MINIS = [f"{spec.name}:{v.name}" for spec in specs() for v in spec.variants if v.is_mini]
ROWS = {True: 10, False: 6}
"""Pairs a model, for those that encode image and prompt apart and for the others, which are slower."""
SLOW = {
    "grounding-fixed",
    "grounding-t2i-r1",
    "hpsv3-v3-m-rope",
    "unifiedreward-flow-grpo",
    "unifiedreward-point-llava",
    "vqascore-llava-onevision",
    "vqascore-llava-onevision-frames",
    "vqascore-qwen",  # "vqascore-qwen-penalised" is the same network
}
SLOW_TO_DECODE = {"thread.png", "panorama.png"}


@dataclass
class Subject:
    """A model and pairs that it can score."""

    model: RewardModel
    images: list[Image.Image]
    prompts: list[str]
    metadata: list[Mapping[str, Any]]

    def outcomes(self, rows: Sequence[int]) -> list[Outcome]:
        return self.model.score_items(*self.pick(rows))

    def pick(self, rows: Sequence[int]) -> tuple[list[Image.Image], list[str], list[Mapping[str, Any]]]:
        return (
            [self.images[i] for i in rows],
            [self.prompts[i] for i in rows],
            [self.metadata[i] for i in rows],
        )

    def values(self, rows: Sequence[int]) -> np.ndarray:
        return np.array([outcome.value for outcome in self.outcomes(rows) if isinstance(outcome, Score)])

    def __len__(self) -> int:
        return len(self.images)


def of_a_case(name: str) -> Subject:
    case = read_case(FIXTURES / name)
    pairs = [p for p in case.pairs if p.score is not None and p.image.name not in SLOW_TO_DECODE]
    return subject(load_case(case), [(p.image, p.prompt, p.metadata) for p in pairs])


def of_a_mini(name: str) -> Subject:
    names = ("square", "wide", "rgba", "grey", "palette", "large", "portrait", "noise", "dot", "odd")
    prompts = ("a red circle", "a blue square left of a green star", "two red circles", "A red, red square.")
    rows = [(INPUTS / f"{name}.png", prompts[i % len(prompts)], {}) for i, name in enumerate(names)]
    return subject(load(name, device="cpu"), rows)


def subject(model: RewardModel, rows: Sequence[Any]) -> Subject:
    n = min(len(rows), ROWS[isinstance(model, PairReward)])
    spread = [rows[i * len(rows) // n] for i in range(n)]
    images, prompts, metadata = zip(*spread, strict=True)
    opened = [Image.open(path) for path in images]
    return Subject(model, opened, list(prompts), list(metadata))


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in (*CASES, *MINIS)],
)
def reward(request: pytest.FixtureRequest) -> Subject:
    make: Callable[[str], Subject] = of_a_mini if request.param in MINIS else of_a_case
    return make(request.param)


def assert_same(these: Sequence[Outcome], those: Sequence[Outcome]) -> None:
    assert len(these) == len(those)
    largest = max((abs(o.value) for o in those if isinstance(o, Score)), default=0.0)
    for here, there in zip(these, those, strict=True):
        assert isinstance(here, Score), here
        assert isinstance(there, Score), there
        assert here.value == pytest.approx(there.value, rel=1e-5, abs=1e-5 * largest)
        for key in there.details:
            assert detail_difference(here.details.get(key), there.details[key]) <= 1e-5, key


def test_a_score_does_not_depend_on_its_neighbours_or_the_batch_size(reward: Subject) -> None:
    together = reward.outcomes(range(len(reward)))
    assert_same(together, [reward.outcomes([i])[0] for i in range(len(reward))])


def test_a_reversed_batch_gives_reversed_scores(reward: Subject) -> None:
    there = reward.outcomes(range(len(reward)))
    back = reward.outcomes(range(len(reward))[::-1])[::-1]
    assert_same(there, back)
    scores = np.array([o.value for o in there if isinstance(o, Score)])
    assert scores.std() > 1e-3 * abs(scores).max(), "scores that hardly differ would prove nothing"


def test_scores_depend_on_the_image(reward: Subject) -> None:
    n = len(reward)
    scores = reward.model.score_items(reward.images, [reward.prompts[0]] * n, [reward.metadata[0]] * n)
    values = [o.value for o in scores if isinstance(o, Score)]
    assert max(values) - min(values) > 1e-5 * max(map(abs, values))


def test_scores_depend_on_the_prompt_where_the_spec_says_so(reward: Subject) -> None:
    scores = reward.model.score_items([reward.images[0]] * len(reward), reward.prompts, reward.metadata)
    values = [o.value for o in scores if isinstance(o, Score)]
    moved = max(values) - min(values)
    assert (moved > 1e-5 * max(map(abs, values))) == reward.model.spec.uses_prompt


def test_an_equal_prompt_or_image_is_encoded_once(reward: Subject) -> None:
    if not isinstance(reward.model, PairReward):
        pytest.skip("encodes image and prompt together")
    first, second = np.asarray(reward.images[0].convert("RGB")), reward.images[1]
    images, prompts = [first, second, second.copy(), first.copy()], ["a", "red circle", "a", "a"]
    inputs = reward.model.prepare(images, prompts, [reward.metadata[0]] * 4).inputs
    assert len(inputs["pixel_values"]) == 2
    assert inputs["text_index"].tolist() == [0, 1, 0, 0]
    assert inputs["image_index"].tolist() == [0, 1, 1, 0]


def test_more_items_than_one_forward_takes_are_split(
    reward: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = reward.outcomes(range(5))
    sizes = []
    run = reward.model.run
    monkeypatch.setattr(reward.model, "spec", replace(reward.model.spec, max_batch=2), raising=False)
    monkeypatch.setattr(reward.model, "run", lambda batch: sizes.append(len(batch)) or run(batch))
    assert_same(reward.outcomes(range(5)), expected)
    assert sizes == [2, 2, 1]


def test_the_resize_that_a_variant_declares_may_be_done_beforehand(reward: Subject) -> None:
    declared = reward.model.variant.resize
    if declared is None:
        pytest.skip("declares none")
    step = replace(declared, size=reward.model.image_size)  # the network of a case is a small one
    for picture in reward.images:
        rgb = picture.convert("RGB")
        assert torch.equal(reward.model.prepare_image(step(rgb)), reward.model.prepare_image(rgb))


def test_no_items_give_no_scores(reward: Subject) -> None:
    assert reward.model.score([], []) == []


def test_one_prompt_for_two_images_is_refused_with_both_lengths(reward: Subject) -> None:
    with pytest.raises(ValueError, match="2 images and 1 prompts"):
        reward.model.score(reward.images[:2], ["a"])


def test_a_bad_image_fails_alone(reward: Subject) -> None:
    images, prompts, metadata = reward.pick([0, 0, 0, 1])
    broken = [images[0], np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3), np.float32), images[3]]
    outcomes = reward.model.score_items(broken, prompts, metadata)
    assert [isinstance(o, ItemError) for o in outcomes] == [False, True, True, False]
    assert "(0, 4, 3)" in str(outcomes[1])
    assert "float32" in str(outcomes[2])
    assert_same([outcomes[0], outcomes[3]], reward.outcomes([0, 1]))
    with pytest.raises(ItemError, match="item 1"):
        reward.model.score(broken, prompts, metadata)


def test_a_score_that_overflows_is_an_error_and_not_a_number(
    reward: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward.model, "evaluate", lambda batch: [Score(math.nan), Score(1.0)])
    first, second = reward.outcomes([0, 1])
    assert isinstance(first, ItemError)
    assert second == Score(1.0)


def test_pil_images_of_any_mode_are_taken_as_rgb(reward: Subject) -> None:
    (picture,), prompts, metadata = reward.pick([0])
    small = picture.convert("RGB").resize((48, 40))
    for mode in ("L", "RGBA", "P", "1", "CMYK"):
        image = small.convert(mode)
        expected = reward.model.score([np.asarray(image.convert("RGB"))], prompts, metadata)
        assert reward.model.score([image], prompts, metadata) == expected, mode


def test_the_gradient_in_the_pixels_equals_finite_differences(reward: Subject) -> None:
    model = reward.model
    if not model.spec.differentiable:
        pytest.skip("the spec does not say differentiable")
    rows = np.argsort(-abs(reward.values(range(len(reward)))))[:2]  # away from where a score is cut at zero
    batch = model.prepare(*reward.pick(rows)).to(model.device, torch.float64)
    model.to(model.device, torch.float64)
    try:
        pixels = batch.inputs["pixel_values"].requires_grad_()
        (gradient,) = torch.autograd.grad(model.forward(batch.inputs).sum(), pixels)
        direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        # Language models' norms reckon in float32 whatever they are given: a longer step, a rougher slope.
        # It is as long in any number of pixels, for a longer one meets the curve.
        rough = model.spec.gpu_dtype != "float32"
        step, tolerance = (0.25 / direction.norm().item(), 5e-3) if rough else (1e-5, 1e-5)

        def moved(sign: int) -> torch.Tensor:
            with torch.no_grad():
                return model.forward({**batch.inputs, "pixel_values": pixels + sign * step * direction}).sum()

        slope = (moved(1) - moved(-1)) / (2 * step)
        assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=tolerance)
        assert abs(slope.item()) > 1e-6
    finally:
        model.to(model.device, torch.float32)


def test_provenance_says_what_a_score_rests_on(reward: Subject) -> None:
    given = reward.model.provenance()
    assert given["reward"] == reward.model.spec.name
    assert given["variant"] == reward.model.variant.name
    assert given["dtype"] == "float32"
    assert given["recipe"].startswith(reward.model.spec.name)
