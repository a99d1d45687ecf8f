"""What the metadata of a model says of the resize that a caller may do."""

from __future__ import annotations

from typing import Any

import pytest

from rewardzoo.resize import PILLOW
from rewardzoo.rewards import resolve
from rewardzoo.services import inference
from rewardzoo.services.hosted import HostedReward


def told(*names: str) -> str | None:
    hosted = []
    for name in names:
        model, variant = resolve(name)
        nothing: Any = None
        hosted.append(HostedReward(name, model.spec, variant, read=nothing, pool=nothing))
    return inference.metadata(hosted)["parameters"].get("resize")


def test_a_reward_that_resizes_bytes_tells_its_step_before_it_is_loaded() -> None:
    assert told("pickscore:v1") == f"bicubic shortest 224, crop floored, Pillow {PILLOW}"
    assert told("imagereward:v1.0") == f"bicubic shortest 224, crop rounded, Pillow {PILLOW}"


@pytest.mark.parametrize("name", ["hpsv2:v2.1", "clipscore:flow-grpo-l14", "vqascore:qwen2.5-vl-7b"])
def test_a_reward_that_resizes_otherwise_tells_none(name: str) -> None:
    assert told(name) is None


def test_rewards_together_tell_a_step_only_where_it_is_that_of_each() -> None:
    assert told("pickscore:v1", "mps:v1") == told("mps:v1") is not None
    assert told("pickscore:v1", "imagereward:v1.0") is None
    assert told("pickscore:v1", "hpsv2:v2.1") is None
    assert told("pickscore:v1", "pickscore:mini") is None
