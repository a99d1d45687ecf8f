from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rewardzoo.clients import Mixture, RewardClient
from rewardzoo.clients.scorer import Scorer
from rewardzoo.clients.transport import Part, Reply, Transport
from rewardzoo.errors import ItemsFailedError, NotServedError

IMAGES = [np.full((2, 2, 3), i, dtype=np.uint8) for i in range(5)]
SUMS = np.array([12.0 * i for i in range(5)], np.float32)


class Failing(Transport):
    """Scores by place; the rewards named in `refuse` fail the items there."""

    def __init__(self, **refuse: list[int]) -> None:
        self.refuse = refuse

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        failed = dict.fromkeys(self.refuse.get(model, []), f"{model} is blind")
        scores = [float("nan") if i in failed else float(i) for i in range(len(part))]
        return Reply(scores, failed, {"reward": model}, {0: {"said": model}})

    def close(self) -> None: ...


def scorer(**refuse: list[int]) -> Scorer:
    return Scorer(Failing(**refuse), timeout=10, max_in_flight=1)


@pytest.mark.parametrize("joins", [True, False])
def test_weights_mix_and_the_parts_are_kept(server: Any, joins: bool) -> None:
    server.joins = joins
    with RewardClient(server.url) as client:
        weights = {"sum": 1.0, "double": 0.5}
        result = client.score_result(IMAGES, "a cat", reward=weights)
        assert_array_equal(client.score(IMAGES, "a cat", reward=weights), result.scores)
    assert_array_equal(result.scores, 2 * SUMS)
    assert list(result.parts) == ["sum", "double"]
    assert_array_equal(result.parts["double"].scores, 2 * SUMS)
    assert result.provenance["double"] == {"recipe": "double" if joins else "sum"}
    assert len(server.seen) == (2 if joins else 4)


def test_images_travel_once_where_the_server_takes_joined_names(server: Any) -> None:
    server.joins = True
    with RewardClient(server.url) as client:
        scores = client.score(IMAGES, "a cat", reward=["sum", "double"])
    assert_array_equal(scores, np.stack([SUMS, 2 * SUMS], axis=1))
    assert server.paths == ["/v2/models/sum%2Bdouble", "/v2/models/sum%2Bdouble/infer"]


def test_a_reward_that_is_not_served_is_named_when_it_is_one_of_several(server: Any, answer: Any) -> None:
    server.script = [answer(404, b'{"error": "no sum here"}')]
    with RewardClient(server.url) as client, pytest.raises(NotServedError, match="no sum here"):
        client.score(IMAGES, "a cat", reward=["sum", "double"])


def test_an_item_that_fails_one_counted_reward_has_no_total_and_keeps_its_other_parts() -> None:
    client = scorer(a=[1], b=[1, 2])
    result = client.score_result(IMAGES, "a cat", reward={"a": 1, "b": 1})
    assert_array_equal(result.scores, [0, np.nan, np.nan, 6, 8])
    assert {i: str(e) for i, e in result.errors.items()} == {
        1: "a: a is blind; b: b is blind",
        2: "b: b is blind",
    }
    assert result.parts["a"].scores[2] == 2
    assert result.details[0] == {"a": {"said": "a"}, "b": {"said": "b"}}
    with pytest.raises(ItemsFailedError, match="2 of 5 items failed"):
        client.score(IMAGES, "a cat", reward={"a": 1, "b": 1})


def test_an_item_that_no_reward_could_be_sent_says_so_once() -> None:
    result = scorer().score_result(IMAGES[:2], ["a", ""], reward=["a", "b"])
    assert str(result.errors[1]).startswith("the prompt is empty")
    assert np.isnan(result.scores[1]).all()


def test_a_judge_is_scored_and_touches_neither_total_nor_errors() -> None:
    mixture = Mixture({"a": 2}, held_out=["judge"])
    result = scorer(judge=[0]).score_result(IMAGES, "a cat", reward=mixture)
    assert_array_equal(result.scores, [0, 2, 4, 6, 8])
    assert result.errors == {}
    assert list(result.parts["judge"].errors) == [0]


def test_groups_are_the_images_of_one_prompt() -> None:
    from rewardzoo.clients import GroupZ

    mixture = Mixture({"a": 1}, normalize=GroupZ(eps=0))
    scores = scorer().score(IMAGES[:4], ["x", "y", "x", "y"], reward=mixture)
    assert_allclose(scores, np.array([-1, -1, 1, 1]) / np.sqrt(2), rtol=1e-6)


def test_failures_can_be_none() -> None:
    client = scorer(a=[1])
    assert client.score(IMAGES[:3], "a cat", reward="a", on_error="none") == [0.0, None, 2.0]
    assert client.score(IMAGES[:2], "a cat", reward=["a", "b"], on_error="none") == [[0.0, 0.0], [None, 1.0]]


def test_a_call_that_names_no_reward_uses_the_clients_own(server: Any) -> None:
    with RewardClient(server.url, reward="double") as client:
        assert_array_equal(client.score(IMAGES, "a cat"), 2 * SUMS)
    with RewardClient(server.url) as client, pytest.raises(ValueError, match="name the reward"):
        client.score(IMAGES, "a cat")


@pytest.mark.parametrize("reward", [[], ["a", "a"], {}])
def test_a_choice_that_means_nothing_is_refused(reward: Any) -> None:
    with pytest.raises(ValueError, match=r"each once|at least one reward"):
        scorer().score(IMAGES, "a cat", reward=reward)
