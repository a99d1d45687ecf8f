from __future__ import annotations

import pytest
import torch

from rewardzoo.trainers.config import OptimizerSection
from rewardzoo.trainers.optimizer import make_optimizer, trained_of


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.0, 0.5, 1.0, 0.854, 0.5, 0.146]),
    ],
)
def test_every_schedule_begins_with_the_warm_up(schedule: str, expected: list[float]) -> None:
    config = OptimizerSection.model_validate({"lr": 1.0, "schedule": schedule, "warmup_steps": 2})
    optimizer, rate = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))], steps=6)
    found = []
    for _ in expected:
        found.append(rate.get_last_lr()[0])
        optimizer.step()
        rate.step()
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_policy_of_which_nothing_is_trained_is_refused() -> None:
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that is to be trained"):
        make_optimizer(OptimizerSection(lr=1.0), trained_of(frozen), steps=1)
