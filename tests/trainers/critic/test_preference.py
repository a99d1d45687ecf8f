import math

import pytest
import torch

from rewardzoo.trainers.critic.preference import bradley_terry_loss


def test_the_loss_is_the_cross_entropy_of_the_chance_that_the_first_is_better() -> None:
    first, second = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 2.0])
    loss = bradley_terry_loss(first, second, torch.tensor([1.0, 1.0, 0.7]))
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.exp(1)), math.log(2)])


def test_a_tie_asks_for_equal_scores() -> None:
    gap = torch.tensor([1.0], requires_grad=True)
    bradley_terry_loss(gap, torch.zeros(1), torch.tensor([0.5])).sum().backward()
    assert gap.grad is not None
    assert gap.grad.item() > 0
    assert bradley_terry_loss(torch.zeros(1), torch.zeros(1), torch.tensor([0.5])).item() == pytest.approx(
        math.log(2)
    )


def test_a_scale_stretches_scores_that_differ_by_little() -> None:
    loss = bradley_terry_loss(torch.tensor([0.26]), torch.tensor([0.25]), torch.ones(1), scale=100)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-4)
