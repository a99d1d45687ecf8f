"""The models: one file a reward, nothing about HTTP."""

from rewardzoo import _torchvision
from rewardzoo.errors import require

require("torch", extra="serve")
_torchvision.install()  # before anything imports torchvision

from rewardzoo.rewards._model import Batch, Outcome, PairReward, Picture, RewardModel, Score  # noqa: E402
from rewardzoo.rewards._registry import families, identify, load, pick_device, resolve, specs  # noqa: E402
from rewardzoo.rewards._spec import (  # noqa: E402
    HubFile,
    HubFolder,
    PackagedFile,
    RewardSpec,
    Variant,
    WebFile,
)
from rewardzoo.rewards._weights import is_on_disk  # noqa: E402

__all__ = [
    "Batch",
    "HubFile",
    "HubFolder",
    "Outcome",
    "PackagedFile",
    "PairReward",
    "Picture",
    "RewardModel",
    "RewardSpec",
    "Score",
    "Variant",
    "WebFile",
    "families",
    "identify",
    "is_on_disk",
    "load",
    "pick_device",
    "resolve",
    "specs",
]
