from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from rewardzoo.errors import ItemError, ItemsFailedError, UnknownRewardError
from rewardzoo.local import LocalRewards


class Brightness:
    """Stands in for a loaded model: the first pixel, and no score for the prompt `refuse`."""

    def __init__(self, name: str = "bright:mini") -> None:
        self.name = name
        self.calls: list[int] = []

    def score_items(self, images: Sequence[Any], prompts: Sequence[str]) -> list[float | ItemError]:
        self.calls.append(len(images))
        pairs = zip(images, prompts, strict=True)
        return [ItemError("refused") if p == "refuse" else float(i.flat[0]) for i, p in pairs]

    def provenance(self) -> dict[str, str]:
        return {"reward": self.name}


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(out, "PNG")
    return out.getvalue()


def pixels(value: int) -> np.ndarray[Any, Any]:
    return np.full((4, 4, 3), value, dtype=np.uint8)


def test_scores_are_those_of_the_model_in_order() -> None:
    images = [pixels(1), png(2), pixels(3), png(4)]
    result = LocalRewards.of([Brightness()]).score_result(images, "a cat", reward="bright:mini")
    assert_array_equal(result.scores, [1, 2, 3, 4])
    assert result.provenance == {"reward": "bright:mini"}


def test_a_request_of_one_size_reaches_the_model_as_one_batch() -> None:
    model = Brightness()
    LocalRewards.of([model]).score([pixels(i) for i in range(64)], "a cat")
    assert model.calls == [64]


def test_a_truncated_png_fails_alone() -> None:
    images = [png(1), png(2)[:-26], png(3), pixels(4)]
    result = LocalRewards.of([Brightness()]).score_result(images, ["a", "b", "refuse", "d"])
    assert_array_equal(result.scores, [1, np.nan, np.nan, 4])
    assert "truncated or damaged PNG" in str(result.errors[1])
    assert str(result.errors[2]) == "refused"
    with pytest.raises(ItemsFailedError, match="1 of 2 items failed"):
        LocalRewards.of([Brightness()]).score(images[:2], "a")


def test_the_reward_may_be_left_out_only_when_there_is_one() -> None:
    scorer = LocalRewards.of([Brightness("a:mini"), Brightness("b:mini")])
    assert_array_equal(scorer.score([pixels(5)], "a", reward="b:mini"), [5])
    with pytest.raises(ValueError, match="several rewards are loaded, name one: a:mini, b:mini"):
        scorer.score([pixels(5)], "a")
    with pytest.raises(UnknownRewardError, match="'c' is not loaded here, there are: a:mini, b:mini"):
        scorer.score([pixels(5)], "a", reward="c")


def test_arguments_that_cannot_work_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match=r"got a string: use \['hpsv2:mini'\]"):
        LocalRewards("hpsv2:mini")
    with pytest.raises(ValueError, match=r"weights are given for \['x'\]"):
        LocalRewards(["hpsv2:mini"], weights={"x": "a.pt"})
    with pytest.raises(ValueError, match="name at least one"):
        LocalRewards([])
