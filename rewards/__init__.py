"""The models: one file a reward, nothing about HTTP."""

from rewardzoo import _torchvision
from rewardzoo.errors import require

require("torch", extra="serve")
_torchvision.install()  # before anything imports torchvision

from rewardzoo.rewards._model import Batch, Picture, RewardModel  # noqa: E402
from rewardzoo.rewards._registry import families, load, pick_device, resolve, specs  # noqa: E402
from rewardzoo.rewards._spec import HubFile, PackagedFile, RewardSpec, Variant  # noqa: E402
from rewardzoo.rewards._weights import is_on_disk  # noqa: E402

__all__ = [
    "Batch",
    "HubFile",
    "PackagedFile",
    "Picture",
    "RewardModel",
    "RewardSpec",
    "Variant",
    "families",
    "is_on_disk",
    "load",
    "pick_device",
    "resolve",
    "specs",
]
