"""The `score` endpoint: what curl and BentoML's own client meet."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

Png = Callable[..., bytes]


def post(client: TestClient, images: list[bytes], prompts: Any, reward: str = "fake:v1", **more: str) -> Any:
    files = [("images", (f"{i}.png", image, "image/png")) for i, image in enumerate(images)]
    data = {
        "prompts": prompts if isinstance(prompts, str) else json.dumps(prompts),
        "reward": reward,
        **more,
    }
    return client.post("/score", files=files, data=data)


def test_a_form_is_scored_with_provenance(serving: Any, model: Any, png: Png) -> None:
    with serving(model) as client:
        response = post(client, [png((255, 255, 255)), png((0, 0, 0))], ["a", "b"])
    assert response.status_code == 200
    assert response.json() == {
        "reward": "fake:v1",
        "scores": [1.0, 0.0],
        "errors": {},
        "details": [{}, {}],
        "provenance": model.provenance(),
    }


def test_metadata_reaches_the_reward_and_details_come_back(serving: Any, png: Png) -> None:
    notes = [{"say": {"count": 2, "p": float("nan")}}, {"refuse": "no box"}, {}]
    with serving() as client:
        reply = post(client, [png()] * 3, ["a", "b", "c"], metadata=json.dumps(notes)).json()
    assert reply["details"] == [{"said": {"count": 2, "p": None}}, {}, {}]
    assert reply["errors"] == {"1": "the metadata is refused: no box"}
    assert reply["scores"][1] is None


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ("[{}, {}]", "1 images and 2 metadata"),
        ("{}", "'metadata' must be a JSON list of objects"),
        ("[1]", "'metadata' must be a JSON list of objects"),
        ("[", "'metadata' must be a JSON list of objects"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(serving: Any, png: Png, metadata: str, error: str) -> None:
    with serving() as client:
        response = post(client, [png()], ["a"], metadata=metadata)
    assert response.status_code == 400
    assert error in response.json()["error"]


def test_truncated_files_and_bad_prompts_fail_alone(serving: Any, png: Png) -> None:
    images = [png(size=64)[:-60], png((255, 255, 255)), png(), b""]
    with serving() as client:
        response = post(client, images, ["a", "b", "", "d"])
    reply = response.json()
    assert response.status_code == 200
    assert reply["scores"] == [None, 1.0, None, None]
    assert set(reply["errors"]) == {"0", "2", "3"}
    assert "empty" in reply["errors"]["2"]


@pytest.mark.parametrize(
    ("prompts", "reward", "status", "error"),
    [
        (["a", "b"], "fake:v1", 400, "1 images and 2 prompts"),
        ("not json", "fake:v1", 400, "JSON list of strings"),
        ([1], "fake:v1", 400, "JSON list of strings"),
        (["a"], "nope", 404, "fake:v1"),
    ],
)
def test_a_bad_form_is_refused_with_the_reason(
    serving: Any, png: Png, prompts: Any, reward: str, status: int, error: str
) -> None:
    with serving() as client:
        response = post(client, [png()], prompts, reward)
    assert response.status_code == status
    assert error in response.json()["error"]


def test_a_url_in_place_of_a_file_is_refused_and_not_fetched(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetch(*_: object, **__: object) -> None:
        pytest.fail("the server fetched a URL that a caller gave")

    monkeypatch.setattr("httpx.AsyncClient.get", fetch)
    fields = {"images": "http://127.0.0.1:1/a.png", "prompts": '["a"]', "reward": "fake:v1"}
    with serving() as client:
        response = client.post("/score", files=[("x", b"")], data=fields)
    assert response.status_code == 400
    assert "never a URL" in response.json()["error"]


def test_other_bodies_are_400(serving: Any) -> None:
    with serving() as client:
        for body, kind in [
            (b"{}", "application/json"),
            (b"junk", "multipart/form-data"),
            (b"junk", "multipart/form-data; boundary=x"),
        ]:
            response = client.post("/score", content=body, headers={"Content-Type": kind})
            assert response.status_code == 400
            assert response.json()["error"]


def test_a_form_over_the_limit_is_413(serving: Any) -> None:
    with serving(max_body_mb=1) as client:
        assert post(client, [bytes(2**20)], ["a"]).status_code == 413


def test_a_full_server_and_a_missed_deadline_keep_their_status(serving: Any, model: Any, png: Png) -> None:
    model.go.clear()
    with serving(model, timeout=0.2) as client:
        assert post(client, [png()], ["a"]).status_code == 504
        model.go.set()


def test_bentoml_shows_the_form_on_its_page(serving: Any) -> None:
    with serving() as client:
        spec = client.get("/docs.json").json()
    (form,) = (kind["schema"] for kind in spec["paths"]["/score"]["post"]["requestBody"]["content"].values())
    assert set(form["properties"]) == {"images", "prompts", "reward", "metadata"}
    assert form["properties"]["images"]["items"] == {"type": "string", "format": "binary"}
