"""Reward models for generated images: score them here, serve them, call them from any trainer."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewardzoo.clients import (
        AsyncRewardClient,
        ItemError,
        ItemsFailedError,
        Mixture,
        RewardClient,
        RewardZooError,
        ScoreResult,
    )
    from rewardzoo.local import LocalRewards

__version__ = "0.1.0"
__all__ = [
    "AsyncRewardClient",
    "ItemError",
    "ItemsFailedError",
    "LocalRewards",
    "Mixture",
    "RewardClient",
    "RewardZooError",
    "ScoreResult",
]

# The packages stand one folder up and are linked in here. A checkout that lost its links (an unpacked
# archive, a bento, Windows) finds them there all the same.
_here = Path(__file__).resolve().parent
if not (_here / "rewards" / "__init__.py").is_file():
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> object:
    """Import what is exported on first use, so that `import rewardzoo` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'rewardzoo' has no attribute {name!r}")
    module = "rewardzoo.local" if name == "LocalRewards" else "rewardzoo.clients"
    return getattr(import_module(module), name)
