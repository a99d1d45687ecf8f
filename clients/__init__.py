"""What a trainer needs: `RewardClient`, mixtures, and their errors. No torch, no bentoml."""

from rewardzoo.clients.cache import CacheInfo, ScoreCache
from rewardzoo.clients.client import AsyncRewardClient, RewardClient
from rewardzoo.clients.images import ImageLike
from rewardzoo.clients.mixing import Mixture
from rewardzoo.clients.normalizers import PRESETS, Affine, GroupZ, Percentile, RunningZ
from rewardzoo.clients.result import ScoreResult
from rewardzoo.clients.scorer import Scorer
from rewardzoo.clients.server import ServedReward
from rewardzoo.errors import ItemError, ItemsFailedError, RewardZooError

__all__ = [
    "PRESETS",
    "Affine",
    "AsyncRewardClient",
    "CacheInfo",
    "GroupZ",
    "ImageLike",
    "ItemError",
    "ItemsFailedError",
    "Mixture",
    "Percentile",
    "RewardClient",
    "RewardZooError",
    "RunningZ",
    "ScoreCache",
    "ScoreResult",
    "Scorer",
    "ServedReward",
]
