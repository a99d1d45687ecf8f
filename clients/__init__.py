"""What a trainer needs: `RewardClient` and its errors. No torch, no bentoml."""

from rewardzoo.clients.client import RewardClient
from rewardzoo.clients.images import ImageLike
from rewardzoo.clients.result import ScoreResult
from rewardzoo.clients.scorer import Scorer
from rewardzoo.clients.server import ServedReward
from rewardzoo.errors import ItemError, ItemsFailedError, RewardZooError

__all__ = [
    "ImageLike",
    "ItemError",
    "ItemsFailedError",
    "RewardClient",
    "RewardZooError",
    "ScoreResult",
    "Scorer",
    "ServedReward",
]
