"""The pool of candidates, and the search among the same paths."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rewardzoo.errors import ItemError
from rewardzoo.local import LocalRewards
from rewardzoo.rewards import Score
from rewardzoo.trainers.lab import judge
from rewardzoo.trainers.lab.study import pool
from rewardzoo.trainers.lab.study.settings import StudySettings, begin
from rewardzoo.trainers.lab.verdict import Verdict

SIZE = 4


class Brightness:
    """A critic that sees potential in everything, at the first look, and selects the brightest picture."""

    name = pool.PARM

    def score_items(
        self, images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[Score | ItemError]:
        return [Score(float(image.mean()), {"clear": True, "potential": 1.0}) for image in images]

    def provenance(self) -> Mapping[str, Any]:
        return {}


def test_the_search_is_among_the_paths_of_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = StudySettings(
        rewards=("hpsv2:mini",), steps=1, evaluation_prompts=3, pool_prompts=3, pool_size=SIZE
    )
    place = begin(tmp_path, settings)
    table = pool.sample_pool(place, "in_domain")
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert len(rows) == 3 * SIZE
    pictures = np.stack([np.asarray(Image.open(table.parent / row["image"])) for row in rows])
    judged: list[np.ndarray[Any, Any]] = []

    def note(image: np.ndarray[Any, Any], prompt: str) -> Verdict:
        judged.append(image)
        return judge(image, prompt)

    monkeypatch.setattr(pool, "judge", note)
    monkeypatch.setattr(pool, "judged_at", lambda: [0.5, 0.75])
    monkeypatch.setattr(pool, "LocalRewards", lambda names, device: LocalRewards.of([Brightness()]))
    (line,) = pool.search_pool(place, "in_domain").read_text().splitlines()
    brightest = pictures.mean((1, 2, 3)).reshape(3, SIZE).argmax(1) + SIZE * np.arange(3)
    for chosen, at in zip(judged, brightest, strict=True):
        # Sampled in another batch, a token may fall to the other side of a uniform, hardly more.
        assert np.abs(chosen.astype(int) - pictures[at].astype(int)).mean() < 1
    found = json.loads(line)
    assert (found["n"], found["drawn"]) == (SIZE, [float(SIZE)] * 3)
    assert found["right"] == [
        float(judge(image, rows[at]["prompt"]).correct) for image, at in zip(judged, brightest, strict=True)
    ]
