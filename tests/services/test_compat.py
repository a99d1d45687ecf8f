"""The requests of OpenRLHF, Flow-Factory and UniRL, as their clients make them."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

WHITE, BLACK = (255, 255, 255), (0, 0, 0)  # 1 and 0 by the fake reward
Encode = Callable[..., str]
TWO = {"rewards": "fake:v1,fake:v2", "compat": "openrlhf,flow_factory,unirl"}


@pytest.fixture
def b64(png: Callable[..., bytes]) -> Encode:
    return lambda color=WHITE: base64.b64encode(png(color)).decode()


def test_every_protocol_is_off_until_it_is_named(serving: Any) -> None:
    with serving(compat="unirl") as client:
        refused = client.post("/openrlhf/get_reward", json={})
        assert (refused.status_code, "set REWARDZOO_COMPAT=openrlhf" in refused.json()["error"]) == (
            404,
            True,
        )
        assert client.get("/flow_factory/health").status_code == 404
        assert client.get("/unirl/rewards").json() == {"rewards": ["fake:v1", "fake"]}


def test_openrlhf_gets_the_reward_of_the_image_in_the_label(serving: Any, b64: Encode) -> None:
    with serving(compat="openrlhf") as client:
        for label in (b64(), {"image": b64(), "prompt": "a dog"}, json.dumps({"image": b64()})):
            payload = {"query": ["<s>a cat x"], "prompts": ["a cat"], "labels": [label]}
            answer = client.post("/openrlhf/get_reward", json=payload)
            assert answer.status_code == 200
            assert answer.json() == {"rewards": [1.0], "scores": [1.0], "extra_logs": {}}


def test_openrlhf_gets_nothing_for_the_nothing_of_a_spare_url(serving: Any) -> None:
    with serving(compat="openrlhf") as client:
        answer = client.post("/openrlhf/get_reward", json={"query": [], "prompts": [], "labels": []})
        assert answer.json() == {"rewards": [], "scores": [], "extra_logs": {}}


def test_openrlhf_gets_no_reward_where_there_is_none(serving: Any, b64: Encode, tmp_path: Any) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(base64.b64decode(b64()))
    with serving(compat="openrlhf") as client:
        for label, reason in (
            (str(picture), "item 0: the image is not base64"),  # a path is never opened
            ({"image": "aGVsbG8="}, "item 0: not an image"),
            ({"answer": 4}, "must have an 'image'"),
            ({"image": b64(), "metadata": {"refuse": "it"}}, "the metadata is refused: it"),
            ({"image": b64(), "metadata": [1]}, "the metadata must be an object, got list"),
        ):
            answer = client.post(
                "/openrlhf/get_reward", json={"query": [""], "prompts": ["a"], "labels": [label]}
            )
            assert (answer.status_code, reason in answer.json()["error"]) == (400, True), answer.text
        short = client.post("/openrlhf/get_reward", json={"query": [], "prompts": ["a"], "labels": []})
        assert "'prompts' and 'labels' differ in length: [1, 0]" in short.json()["error"]


def test_the_url_names_the_reward_where_there_are_several(serving: Any, b64: Encode) -> None:
    payload = {"query": [""], "prompts": ["a"], "labels": [b64()]}
    with serving(**TWO) as client:
        assert client.post("/openrlhf/fake:v2/get_reward", json=payload).json()["rewards"] == [1.0]
        answer = client.post("/openrlhf/get_reward", json=payload)
        assert answer.status_code == 404
        assert "as in /openrlhf/fake:v1/get_reward" in answer.json()["error"]


def test_flow_factory_gets_rewards_of_base64_images(serving: Any, b64: Encode) -> None:
    none = {"video": None, "condition_images": None, "condition_videos": None}
    with serving(**TWO) as client:
        health = client.get("/flow_factory/fake:v1/health")
        assert (health.status_code, health.json()["status"]) == (200, "ok")
        payload = {"prompt": ["a", "b"], "image": [b64(WHITE), b64(BLACK)], **none}
        answer = client.post("/flow_factory/fake:v1/compute", json=payload)
        assert answer.json() == {"rewards": [1.0, 0.0]}


def test_flow_factory_is_told_why_in_the_way_that_its_client_shows(serving: Any, b64: Encode) -> None:
    with serving(compat="flow_factory") as client:
        for payload, reason in (
            (
                {"prompt": ["a", "b"], "image": [b64(), "aGVsbG8="]},
                "1 of 2 items failed: item 1: not an image",
            ),
            ({"prompt": ["a"], "image": None}, "only images are scored here"),
        ):
            answer = client.post("/flow_factory/compute", json=payload)
            assert answer.status_code == 200
            assert reason in answer.json()["error"]


def test_unirl_gets_scores_and_errors_by_request_and_reward(serving: Any, b64: Encode) -> None:
    def asks(image: Any, *rewards: str, **more: Any) -> dict[str, Any]:
        return {"history": [{"text": "a", "image_b64": image}], "required_rewards": rewards, **more}

    with serving(**TWO) as client:
        requests = [
            asks(b64(WHITE), "fake:v1", "fake:v2", metadata=None),
            asks(b64(BLACK), "fake:v2"),
            asks("aGVsbG8=", "fake:v1", "fake:v2"),
            asks(b64(WHITE), "fake:v1", metadata={"refuse": "it"}),
        ]
        # The turn that is scored is the last: an edit's source image comes before it.
        requests[1]["history"].insert(0, {"text": "a", "image_b64": b64(WHITE)})
        found = client.post("/unirl/score", json={"requests": requests}).json()
        assert found["results"] == [
            {"fake:v1": {"score": 1.0}, "fake:v2": {"score": 1.0}},
            {"fake:v2": {"score": 0.0}},
            {},
            {},
        ]
        assert [list(errors) for errors in found["errors"]] == [[], [], ["fake:v1", "fake:v2"], ["fake:v1"]]
        assert client.post("/unirl/score", json={"requests": []}).json() == {"results": [], "errors": []}


def test_unirl_finds_the_names_that_it_requires_in_the_health(serving: Any, b64: Encode) -> None:
    with serving(rewards="fake:v1,fake:mini", compat="unirl") as client:
        health = client.get("/unirl/health").json()
        assert list(health["rewards"]) == ["fake:v1", "fake:mini", "fake"]
        for name in health["rewards"]:
            history = [{"text": "a", "image_b64": b64()}]
            body = {"requests": [{"history": history, "required_rewards": [name]}]}
            assert client.post("/unirl/score", json=body).json()["results"] == [{name: {"score": 1.0}}]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"requests": 3}, "'requests' must be a list, got 3"),
        ({"requests": [3]}, "request 0 must be an object, got int"),
        ({"requests": [{"history": []}]}, "request 0 must have a 'history'"),
        ({"requests": [{"history": [{}], "required_rewards": []}]}, "must have 'required_rewards'"),
    ],
)
def test_a_malformed_request_is_refused_with_what_is_wrong(serving: Any, body: Any, reason: str) -> None:
    with serving(compat="unirl") as client:
        answer = client.post("/unirl/score", json=body)
        assert (answer.status_code, reason in answer.json()["error"]) == (400, True), answer.text


def test_pickle_is_refused_and_never_loaded(serving: Any) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("raise SystemExit('loaded')",)

    with serving(compat="openrlhf,flow_factory,unirl") as client:
        for path in ("/openrlhf/get_reward", "/unirl/score"):
            assert client.post(path, content=pickle.dumps(Bomb())).status_code == 400
        assert "error" in client.post("/flow_factory/compute", content=pickle.dumps(Bomb())).json()


def test_a_token_holds_for_these_routes_too(serving: Any) -> None:
    with serving(compat="unirl", token="secret") as client:
        assert client.get("/unirl/rewards").status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert client.get("/unirl/rewards", headers=headers).status_code == 200


def test_the_limits_of_a_request_hold_here_too(serving: Any, b64: Encode) -> None:
    payload = {"prompt": ["a", "b"], "image": [b64(), b64()]}
    with serving(compat="flow_factory", max_items=1) as client:
        assert "2 items, the limit is 1" in client.post("/flow_factory/compute", json=payload).json()["error"]
    with serving(compat="unirl", max_pixels=16) as client:
        history = [{"text": "a", "image_b64": b64()}]
        body = {"requests": [{"history": history, "required_rewards": ["fake"]}]}
        assert "8x8" in client.post("/unirl/score", json=body).json()["errors"][0]["fake"]
    with serving(compat="openrlhf", max_json_mb=1) as client:
        labels = ["A" * 2**20]
        answer = client.post("/openrlhf/get_reward", json={"query": [], "prompts": ["a"], "labels": labels})
        assert (answer.status_code, "the limit is 1,048,576" in answer.json()["error"]) == (413, True)
