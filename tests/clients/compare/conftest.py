from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rewardzoo.clients.compare.building import build
from rewardzoo.clients.compare.groups import Group
from rewardzoo.clients.compare.store import ScoreStore
from rewardzoo.clients.in_process import InProcess
from rewardzoo.clients.scorer import Scorer
from rewardzoo.errors import ItemError


@dataclass(frozen=True)
class Scored:
    value: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Red:
    """Scores a picture's first red value, times a factor; one of 13 cannot be scored."""

    name: str
    factor: float = 1.0
    weights: str = "1"
    seen: list[str] = field(default_factory=list)
    told: list[Mapping[str, Any]] = field(default_factory=list)

    def score_items(
        self, images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Sequence[Scored | ItemError]:
        self.seen += prompts
        self.told += metadata
        reds = [int(image[0, 0, 0]) for image in images]
        return [ItemError("unlucky") if red == 13 else Scored(self.factor * red) for red in reds]

    def provenance(self) -> Mapping[str, Any]:
        return {"reward": self.name, "weights_sha256": self.weights, "device": "cpu"}


def scorer_of(*models: Red) -> Scorer:
    return Scorer(InProcess({m.name: m for m in models}), timeout=math.inf, max_in_flight=1)


def write_red(path: Path, red: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (red, 0, 0)).save(path)
    return path.name


def keep(store: ScoreStore, **scores: Sequence[float]) -> None:
    """Put scores into a store of one chunk."""
    arrays = {name: np.asarray(values, np.float32) for name, values in scores.items()}
    store.write_scores(0, arrays, {}, {name: {"reward": name} for name in scores})


MakeStore = Callable[..., ScoreStore]


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    def make(groups: Sequence[Group], benchmark: str = "plain", name: str = "data") -> ScoreStore:
        folder = tmp_path / "out" / "data" / name
        return build(
            folder, tmp_path, lambda: groups, name=name, benchmark=benchmark, source="here", license="none"
        )

    return make
