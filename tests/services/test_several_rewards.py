"""Several rewards in one request: `a:x+b:y` in place of a name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rewardzoo.clients import wire
from rewardzoo.services import workers

BOTH = "fake:v2+fake:v1"
REWARDS = "fake:v1,fake:v2,fake:mini"


def body(images: Any, prompts: list[str], notes: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    tensors = {wire.IMAGES: images, wire.PROMPTS: wire.bytes_tensor(prompts)}
    if notes is not None:
        tensors[wire.METADATA] = wire.bytes_tensor([json.dumps(note) for note in notes])
    chunks, length = wire.encode({"parameters": {"binary_data_output": True}}, tensors, key="inputs")
    return {"content": b"".join(chunks), "headers": {wire.HEADER: str(length)}}


def infer(client: Any, name: str, request: dict[str, Any]) -> wire.Message:
    response = client.post(f"/v2/models/{name}/infer", **request)
    assert response.status_code == 200, response.text
    return wire.decode(response.content, int(response.headers[wire.HEADER]), key="outputs")


def test_all_items_are_scored_with_each_reward_in_the_order_of_the_names(
    serving: Any, png: Callable[..., bytes]
) -> None:
    images = wire.bytes_tensor([png((255, 255, 255)), b"junk", png((0, 0, 0))])
    notes = [{"say": 1}, {}, {"refuse": "no box"}]
    with serving(rewards=REWARDS) as client:
        message = infer(client, BOTH, body(images, ["a", "b", "c"], notes))
        single = infer(client, "fake:v1", body(images, ["a", "b", "c"], notes))
        metadata = client.get("/v2/models/fake:v1").json()
    scores = message.tensors[wire.SCORES]
    assert scores.dtype == np.float32
    assert scores[0].tolist() == [1, 1]
    assert np.isnan(scores[1:]).all()
    assert scores.shape == (3, 2)
    for column in (0, 1):
        for name in (wire.ERRORS, wire.DETAILS):
            assert message.tensors[name][:, column].tolist() == single.tensors[name].tolist()
    assert message.header["model_name"] == BOTH
    provenance = json.loads(message.parameters["provenance"])
    assert list(provenance) == ["fake:v2", "fake:v1"]
    assert provenance["fake:v1"] == single.parameters
    assert provenance["fake:v1"].items() <= metadata["parameters"].items()
    assert provenance["fake:v2"]["variant"] == "v2"


def test_each_image_is_decoded_once_for_all_of_them(
    serving: Any, png: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    decode = workers.decode_image
    monkeypatch.setattr(workers, "decode_image", lambda data: decoded.append(data) or decode(data))
    images = wire.bytes_tensor([png((value, 0, 0)) for value in range(20)])
    with serving(rewards=REWARDS) as client:
        infer(client, "fake:v1+fake:v2+fake:mini", body(images, ["a"] * 20))
    assert len(decoded) == 20


def test_metadata_and_readiness_of_a_joined_name(serving: Any) -> None:
    with serving(rewards=REWARDS) as client:
        about = client.get(f"/v2/models/{BOTH}").json()
        assert client.get(f"/v2/models/{BOTH}/ready").status_code == 200
        assert client.get("/v2/models/fake:mini+nope/ready").status_code == 404
    assert about["name"] == BOTH
    assert {output["name"]: output["shape"] for output in about["outputs"]} == {
        "scores": [-1, 2],
        "errors": [-1, 2],
        "details": [-1, 2],
    }
    assert list(json.loads(about["parameters"]["provenance"])) == ["fake:v2", "fake:v1"]


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("fake:v1+fake:v1", 400, "named twice"),
        ("+".join(["fake:v1"] * 17), 400, "17 rewards in one request, the limit is 16"),
        ("fake:v1+nope", 404, "'nope' is not served here"),
        ("fake:v1+", 404, "is not served here"),
    ],
)
def test_names_that_cannot_be_joined_are_refused(serving: Any, name: str, status: int, error: str) -> None:
    with serving(rewards=REWARDS) as client:
        response = client.post(f"/v2/models/{name}/infer", **body(np.zeros((1, 4, 4, 3), np.uint8), ["a"]))
    assert response.status_code == status
    assert error in response.json()["error"]


def test_an_empty_request_has_empty_columns(serving: Any) -> None:
    with serving(rewards=REWARDS) as client:
        message = infer(client, BOTH, body(np.zeros((0, 4, 4, 3), np.uint8), []))
    assert message.tensors[wire.SCORES].shape == (0, 2)


def test_tritons_own_client_reads_the_columns(listening: Any) -> None:
    triton = pytest.importorskip("tritonclient.http")
    images = np.full((2, 4, 4, 3), 255, dtype=np.uint8)
    inputs = [triton.InferInput("images", [2, 4, 4, 3], "UINT8"), triton.InferInput("prompts", [2], "BYTES")]
    inputs[0].set_data_from_numpy(images)
    inputs[1].set_data_from_numpy(np.array([b"a", b"b"], dtype=np.object_))
    with (
        listening(rewards=REWARDS) as url,
        triton.InferenceServerClient(url.removeprefix("http://")) as client,
    ):
        result = client.infer(BOTH, inputs)
        client.close()
    assert result.as_numpy("scores").tolist() == [[1, 1], [1, 1]]
    assert result.as_numpy("errors").shape == (2, 2)


def test_the_form_answers_with_a_reply_for_each(serving: Any, png: Callable[..., bytes]) -> None:
    files = [
        ("images", ("a.png", png((255, 255, 255)), "image/png")),
        ("images", ("b.png", b"", "image/png")),
    ]
    with serving(rewards=REWARDS) as client:
        data = {"prompts": json.dumps(["a", "b"]), "reward": BOTH}
        reply = client.post("/score", files=files, data=data).json()
        one = client.post("/score", files=files, data={**data, "reward": "fake:v1"}).json()
    assert list(reply) == ["rewards"]
    assert list(reply["rewards"]) == ["fake:v2", "fake:v1"]
    assert reply["rewards"]["fake:v1"] == one
    assert one["scores"] == [1.0, None]
