from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from rewardzoo.clients import ScoreCache, in_process
from rewardzoo.errors import ItemError, ItemsFailedError, UnknownRewardError
from rewardzoo.local import LocalRewards


class Shade(NamedTuple):
    value: float
    details: Mapping[str, Any]


class Brightness:
    """Stands in for a loaded model: the first pixel, and no score for the prompt `refuse`.

    Its details are the item's metadata.
    """

    def __init__(self, name: str = "bright:mini") -> None:
        self.name = name
        self.calls: list[int] = []

    def score_items(
        self, images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[Shade | ItemError]:
        self.calls.append(len(images))
        items = zip(images, prompts, metadata, strict=True)
        return [ItemError("refused") if p == "refuse" else Shade(i.flat[0], m) for i, p, m in items]

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


def test_metadata_reaches_the_model_and_details_come_back_item_by_item() -> None:
    images = [pixels(1), pixels(2)[:2], png(3)[:-26], pixels(4), pixels(5)]
    notes: list[Any] = [{"step": 0}, {"step": 1}, {"step": 2}, {}, {"p": float("nan")}]
    result = LocalRewards.of([Brightness()]).score_result(images, "a", metadata=notes)
    assert result.details == ({"step": 0}, {"step": 1}, {}, {}, {"p": None})
    assert_array_equal(result.scores, [1, 2, np.nan, 4, 5])


def test_metadata_that_is_no_object_fails_its_item() -> None:
    notes: list[Any] = [{}, [1], "a"]
    result = LocalRewards.of([Brightness()]).score_result([pixels(i) for i in (1, 2, 3)], "a", metadata=notes)
    assert_array_equal(result.scores, [1, np.nan, np.nan])
    assert "the metadata must be a JSON object, got list" in str(result.errors[1])


def test_details_without_a_form_in_json_fail_their_item_as_on_a_server() -> None:
    class Odd(Brightness):
        def score_items(self, images: Any, prompts: Any, metadata: Any) -> list[Shade | ItemError]:
            return [Shade(1.0, {"x": object()}), Shade(2.0, {"x": np.float32(0.5), "y": np.arange(2)})]

    result = LocalRewards.of([Odd()]).score_result([pixels(1), pixels(2)], "a")
    assert_array_equal(result.scores, [np.nan, 2])
    assert "has no form in JSON" in str(result.errors[0])
    assert result.details == ({}, {"x": 0.5, "y": [0, 1]})


def test_the_reward_may_be_left_out_only_when_there_is_one() -> None:
    scorer = LocalRewards.of([Brightness("a:mini"), Brightness("b:mini")])
    assert_array_equal(scorer.score([pixels(5)], "a", reward="b:mini"), [5])
    with pytest.raises(ValueError, match="several rewards are loaded, name one: a:mini, b:mini"):
        scorer.score([pixels(5)], "a")
    with pytest.raises(UnknownRewardError, match="'c' is not loaded here, there are: a:mini, b:mini"):
        scorer.score([pixels(5)], "a", reward="c")


def test_a_model_may_stand_under_the_name_of_another() -> None:
    new, old = Brightness("b:mini"), Brightness("a:mini")
    scorer = LocalRewards.of({"a:mini": new, "old": old})
    result = scorer.score_result([pixels(5)], "x", reward=["a:mini", "old"])
    assert [result.parts[name].provenance["reward"] for name in ("a:mini", "old")] == ["b:mini", "a:mini"]


def test_arguments_that_cannot_work_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match=r"got a string: use \['hpsv2:mini'\]"):
        LocalRewards("hpsv2:mini")
    with pytest.raises(ValueError, match=r"weights are given for \['x'\]"):
        LocalRewards(["hpsv2:mini"], weights={"x": "a.pt"})
    with pytest.raises(ValueError, match="name at least one"):
        LocalRewards([])


def test_several_rewards_are_scored_in_one_call_and_files_decoded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[bytes] = []

    def decode(data: bytes) -> Any:
        decoded.append(data)
        return in_process_decode(data)

    in_process_decode = in_process.decode_image
    monkeypatch.setattr(in_process, "decode_image", decode)
    scorer = LocalRewards.of([Brightness("a:mini"), Brightness("b:mini")])
    images = [png(1), png(2), b"no image", png(4)]
    result = scorer.score_result(images, ["x", "refuse", "x", "x"], reward={"a:mini": 1.0, "b:mini": 0.5})
    assert_array_equal(result.scores, np.array([1.5, np.nan, np.nan, 6], np.float32))
    assert list(result.errors) == [1, 2]
    assert result.parts["b:mini"].provenance == {"reward": "b:mini"}
    assert len(decoded) == 3
    assert scorer.score(images[:1], "x", reward=["b:mini"], on_error="none") == [[1.0]]


def test_a_cache_spares_the_model(tmp_path: Path) -> None:
    model = Brightness()
    scorer = LocalRewards.of([model], cache=ScoreCache(tmp_path / "scores.db"))
    for _ in range(2):
        assert_array_equal(scorer.score([pixels(i) for i in range(9)], "a cat"), range(9))
    assert sum(model.calls) == 9
    scorer.close()
