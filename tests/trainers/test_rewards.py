from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from rewardzoo.clients import RunningZ, Scorer
from rewardzoo.clients.transport import Part, Reply, Transport
from rewardzoo.errors import NotServedError, UnavailableError
from rewardzoo.trainers.config import RewardsSection
from rewardzoo.trainers.lab import triples
from rewardzoo.trainers.prompts import Prompt
from rewardzoo.trainers.rewards import Rewards, RewardsLostError, StopAskedError

PAIRS = list(triples(3, seed=0))
IMAGES = np.stack([image for pair in PAIRS for image in (pair.right, pair.wrong)])
PROMPTS = [Prompt(pair.prompt) for pair in PAIRS for _ in range(2)]
GROUPS = [0, 0, 1, 1, 2, 2]


class Server(Transport):
    """Answers as it is told to, where a server would be."""

    def __init__(self, answer: Callable[[Part], Reply]) -> None:
        self.answer = answer

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        return self.answer(part)


@pytest.fixture
def rewards(monkeypatch) -> Callable[..., Rewards]:
    def make(
        answer: Callable[[Part], Reply], stop: Callable[[], bool] = lambda: False, **said: Any
    ) -> Rewards:
        def connect(self: Rewards, names: Sequence[str]) -> Scorer:
            return Scorer(Server(answer), timeout=said.get("timeout", 5), max_in_flight=2)

        monkeypatch.setattr(Rewards, "_connect", connect)
        settings = {"url": "http://127.0.0.1:1", "weights": {"served": 1.0}, "timeout": 5, **said}
        return Rewards(RewardsSection(**settings), stop=stop)

    return make


def brightness(part: Part) -> Reply:
    return Reply([float(np.mean(image)) for image in part.payloads], provenance={"weights": "a"})


def collect(rewards: Rewards) -> Any:
    return rewards.collect([rewards.submit(IMAGES, PROMPTS)], GROUPS)


def test_served_rewards_and_the_exact_judge_are_mixed_as_one(rewards) -> None:
    joined = rewards(brightness, weights={"served": 0.5, "lab:exact": 10.0}, held_out=["lab:exact-share"])
    scores = collect(joined)
    assert scores.parts["lab:exact"].tolist() == [1, 0] * 3
    assert (scores.parts["lab:exact-share"][1::2] < 1).all()
    expected = 0.5 * scores.parts["served"] + 10 * scores.parts["lab:exact"]
    np.testing.assert_allclose(joined.mix(scores), expected, rtol=1e-6)
    assert joined.provenance["served"] == {"weights": "a"}


def test_batches_of_a_step_come_back_in_the_order_in_which_they_were_submitted(rewards) -> None:
    both = rewards(brightness)
    pending = [both.submit(IMAGES[rows], PROMPTS[rows]) for rows in (slice(0, 4), slice(4, 6))]
    assert both.collect(pending, GROUPS).parts["served"].tolist() == pytest.approx(
        IMAGES.mean(axis=(1, 2, 3)).tolist(), rel=1e-6
    )


def test_an_item_that_fails_is_nan_and_its_neighbours_are_not(rewards, caplog) -> None:
    def failing(part: Part) -> Reply:
        scores = [1.0] * len(part)
        return Reply([float("nan"), *scores[1:]], errors={0: "cannot be read"})

    found = rewards(failing)
    with caplog.at_level(logging.WARNING):
        scores = collect(found)
    totals = found.mix(scores)
    assert np.isnan(totals[0])
    assert np.isfinite(totals[1:]).all()
    assert scores.errors == {0: "served: cannot be read"}
    assert "1 of 6 images could not be scored" in caplog.text


def test_a_failed_judge_that_is_held_out_costs_no_total(rewards) -> None:
    outside = [Prompt("a prompt outside the grammar"), *PROMPTS[1:]]
    found = rewards(brightness, held_out=["lab:exact"])
    scores = found.collect([found.submit(IMAGES, outside)], GROUPS)
    assert np.isnan(scores.parts["lab:exact"][0])
    assert np.isfinite(found.mix(scores)).all()


def test_a_batch_of_which_nothing_can_be_scored_is_no_batch(rewards) -> None:
    found = rewards(
        lambda part: Reply([float("nan")] * len(part), errors=dict.fromkeys(range(6), "too dark"))
    )
    with pytest.raises(RewardsLostError, match="not one of 6 images could be scored: served: too dark"):
        found.mix(collect(found))


@pytest.mark.parametrize(("error", "code"), [(UnavailableError("gone"), 75), (NotServedError("no such"), 1)])
def test_a_server_that_is_gone_can_be_tried_later_and_one_that_refuses_cannot(rewards, error, code) -> None:
    def refuse(part: Part) -> Reply:
        raise error

    with pytest.raises(RewardsLostError, match=str(error)) as found:
        collect(rewards(refuse))
    assert found.value.exit_code == code


def test_a_signal_ends_the_wait(rewards) -> None:
    release = threading.Event()

    def slow(part: Part) -> Reply:
        release.wait(10)
        return brightness(part)

    began = time.monotonic()
    with pytest.raises(StopAskedError):
        collect(rewards(slow, stop=lambda: time.monotonic() > began + 0.3))
    release.set()
    assert time.monotonic() < began + 5


def test_scoring_goes_on_while_the_trainer_does_something_else(rewards) -> None:
    def slow(part: Part) -> Reply:
        time.sleep(0.3)
        return brightness(part)

    overlapped, waiting = rewards(slow), rewards(slow, overlap=False)
    began = time.monotonic()
    pending = overlapped.submit(IMAGES, PROMPTS)
    assert time.monotonic() - began < 0.2
    time.sleep(0.4)
    assert overlapped.collect([pending], GROUPS).waited < 0.2
    assert waiting.submit(IMAGES, PROMPTS).done()


def test_a_server_that_comes_back_with_other_weights_is_noticed(rewards, caplog) -> None:
    weights = iter("ab")
    found = rewards(lambda part: Reply([1.0] * len(part), provenance={"weights": next(weights)}))
    collect(found)
    with caplog.at_level(logging.WARNING):
        collect(found)
    assert "served rests on something else now: {'weights': 'b'}" in caplog.text


def test_what_running_normalisers_have_learnt_is_state(rewards) -> None:
    first, second = (rewards(brightness, normalize={"served": "running_z"}) for _ in range(2))
    first.mix(collect(first))
    second.load_state_dict(first.state_dict())
    learnt = second.mixture.normalizers["served"]
    assert isinstance(learnt, RunningZ)
    assert learnt.count == 6
