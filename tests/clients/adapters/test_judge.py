from __future__ import annotations

import asyncio
import math
import pickle
from typing import Any

import cloudpickle
import numpy as np
import pytest

from rewardzoo import AsyncRewardClient, ItemsFailedError, Mixture, RewardClient
from rewardzoo.clients.adapters._judge import Judge, judge_of
from rewardzoo.errors import DeadlineError

ONES = np.ones((2, 2, 3), np.uint8)  # the server scores the sum of the bytes: 12


def test_scores_and_failures_follow_the_policy(server: Any) -> None:
    images, prompts = [ONES, None, ONES * 2], ["a", "b", "c"]
    with pytest.raises(ItemsFailedError) as failed:
        Judge(server.url, "sum").score(images, prompts)
    assert list(failed.value.errors) == [1]
    nan = Judge(server.url, "sum", on_error="nan").score(images, prompts).totals
    assert nan[0] == 12
    assert nan[1] is not None
    assert math.isnan(nan[1])
    assert Judge(server.url, "sum", on_error="none").score(images, prompts).totals == [12, None, 24]
    with pytest.raises(ValueError, match="on_error must be 'raise', 'nan' or 'none', got 'zero'"):
        Judge(server.url, "sum", on_error="zero")  # type: ignore[arg-type]


def test_a_mixture_keeps_its_parts_also_those_held_out(server: Any) -> None:
    mixture = Mixture({"sum": 1.0, "double": 0.5}, held_out=["third"])
    scores = Judge(server.url, mixture).score([ONES], ["a"])
    assert scores.totals == [24]
    assert scores.parts == {"sum": [12], "double": [24], "third": [12]}
    assert scores.first() == {"score": 24, "sum": 12, "double": 24, "third": 12}


def test_several_rewards_without_weights_are_refused(server: Any) -> None:
    with pytest.raises(ValueError, match=r"give weights, as in \{'sum': 1.0\}"):
        Judge(server.url, ["sum", "double"])


def test_awaited_it_scores_the_same_and_ends_in_time(server: Any, answer: Any) -> None:
    judge = Judge(server.url, "sum", timeout=0.3)
    assert asyncio.run(judge.score_async([ONES], ["a"])).totals == [12]
    server.script = [answer(wait=3.0)]
    with pytest.raises(DeadlineError):
        asyncio.run(judge.score_async([ONES], ["a"]))


def test_what_scores_may_be_a_client_of_either_kind_or_urls(server: Any) -> None:
    for source in (RewardClient(server.url, reward="sum"), AsyncRewardClient(server.url, reward="sum")):
        assert Judge(source).score([ONES], ["a"]).totals == [12]
    assert Judge([server.url], "sum").score([ONES], ["a"]).totals == [12]
    with pytest.raises(ValueError, match="timeout cannot be set for a RewardClient"):
        Judge(RewardClient(server.url), "sum", timeout=3)
    with pytest.raises(ValueError, match="must be a client, LocalRewards or a URL, got 3"):
        Judge(3)  # type: ignore[arg-type]


def test_the_token_comes_from_the_environment_when_none_is_given(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDZOO_TOKEN", "secret")
    Judge(server.url, "sum").score([ONES], ["a"])
    Judge(server.url, "sum", token="other").score([ONES], ["a"])
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer secret", "Bearer other"]


@pytest.mark.parametrize("package", [pickle, cloudpickle])
def test_a_pickled_judge_opens_its_own_connections(server: Any, package: Any) -> None:
    judge = Judge(server.url, {"sum": 2.0})
    judge.score([ONES], ["a"])
    assert package.loads(package.dumps(judge)).score([ONES], ["a"]).totals == [24]


def test_one_configuration_is_one_client(server: Any) -> None:
    config = {"url": server.url, "reward": {"sum": 1.0, "double": 1.0}, "timeout": 5}
    assert judge_of(config) is judge_of(dict(reversed(config.items())))
    assert judge_of(config) is not judge_of({**config, "timeout": 6})
    with pytest.raises(TypeError, match="made of JSON, it cannot have object"):
        judge_of({"url": object()})
