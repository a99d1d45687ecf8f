"""Bradley and Terry's loss against the one that TRL's RewardTrainer computes, on the same numbers."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from rewardzoo.trainers.critic.preference import bradley_terry_loss

trl = pytest.importorskip("trl")


def of_trl(chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Loss and accuracy by `RewardTrainer.compute_loss`, called on a stand-in for what it reads of `self`."""
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _total_train_tokens=0,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    logits = torch.cat([chosen, rejected])[:, None]  # a reward model's head has one output
    loss = trl.RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), {})
    return loss, trainer._metrics["eval"]["accuracy"][0]


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_the_loss_and_its_gradient_are_those_of_trls_reward_trainer(scale: float) -> None:
    torch.manual_seed(0)
    chosen, rejected = torch.randn(2, 64, dtype=torch.float64)  # float32 rounds where the loss is flat
    grads, losses = [], []
    for theirs in (False, True):
        first, second = (x.clone().requires_grad_() for x in (chosen, rejected))
        if theirs:
            loss, accuracy = of_trl(scale * first, scale * second)
        else:
            loss = bradley_terry_loss(first, second, torch.ones(64, dtype=torch.float64), scale=scale).mean()
        losses.append(loss)
        grads.append(torch.autograd.grad(loss, (first, second)))
    torch.testing.assert_close(*losses)
    for ours, trls in zip(*grads, strict=True):
        torch.testing.assert_close(ours, trls)
    assert accuracy == pytest.approx((chosen > rejected).float().mean())
