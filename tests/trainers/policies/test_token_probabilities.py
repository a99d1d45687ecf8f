from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rewardzoo.trainers.policies import token_probabilities
from rewardzoo.trainers.policies.token_probabilities import draw, guide, score_tokens

LARGEST = math.nextafter(1.0, 0.0)


def test_a_token_is_drawn_as_often_as_it_is_probable() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    drawn = draw(probabilities.log().expand(len(grid), -1), grid)
    assert torch.bincount(drawn, minlength=4).tolist() == [5000, 0, 2000, 3000]


@pytest.mark.parametrize(
    "logits", [[0.0, -math.inf, -math.inf], [-math.inf, 1.0, -math.inf], [-200, 3.0, -200]]
)
@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, LARGEST])
def test_a_token_of_probability_zero_is_never_drawn(logits: list[float], uniform: float) -> None:
    (token,) = draw(torch.tensor([logits]), torch.tensor([uniform], dtype=torch.float64))
    assert token == int(torch.tensor(logits).argmax())


def test_the_largest_uniform_draws_a_token_however_the_sum_is_rounded() -> None:
    logits = torch.randn(500, 16384, generator=torch.Generator().manual_seed(0)) * 5
    drawn = draw(logits, torch.full((500,), LARGEST, dtype=torch.float64))
    assert int(drawn.max()) < 16384
    assert bool((logits.softmax(-1).gather(1, drawn[:, None]) > 0).all())


def test_guidance_goes_from_unconditional_through_conditional_and_beyond() -> None:
    c, u = torch.tensor([2.0]), torch.tensor([1.0])
    assert [guide(c, u, w).item() for w in (0.0, 1.0, 5.0)] == [1.0, 2.0, 6.0]


def scored(
    head: nn.Module, c: torch.Tensor, u: torch.Tensor, ids: torch.Tensor, detach: bool
) -> torch.Tensor:
    out = score_tokens(head, c, u, ids, codes=11, scale=3.0, temperature=0.7, detach_unconditional=detach)
    return out.logprobs.sum() + 0.3 * out.entropy.sum()


@pytest.mark.parametrize("detach", [False, True])
def test_logits_made_for_some_images_at_a_time_give_the_same_values_and_gradients(
    detach: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 11)
    c, u = torch.randn(2, 3, 5, 8).requires_grad_().unbind()
    ids = torch.randint(11, (3, 5))
    wanted = torch.autograd.grad(scored(head, c, u, ids, detach), [c, head.weight])
    monkeypatch.setattr(token_probabilities, "LOGITS_AT_ONCE", 2 * 5 * 11)
    found = torch.autograd.grad(scored(head, c, u, ids, detach), [c, head.weight])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
