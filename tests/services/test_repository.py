"""The protocol's model repository: an index, and loading and unloading by request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

REWARDS = "fake:v1,fake:v2"
TOKEN = {"Authorization": "Bearer secret"}


def index(client: Any, **body: Any) -> dict[str, tuple[str, str]]:
    found = client.post("/v2/repository/index", json=body, headers=TOKEN)
    assert found.status_code == 200, found.text
    return {entry["name"]: (entry["state"], entry["reason"]) for entry in found.json()}


def order(client: Any, what: str, name: str = "fake:v1") -> Any:
    return client.post(f"/v2/repository/models/{name}/{what}", json={}, headers=TOKEN)


def test_a_model_is_unloaded_and_loaded_by_request(serving: Any) -> None:
    item = {
        "inputs": [
            {"name": "images", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [255, 255, 255]},
            {"name": "prompts", "datatype": "BYTES", "shape": [1], "data": ["a"]},
        ]
    }
    with serving(rewards=REWARDS, token="secret") as client:
        assert index(client) == {"fake:v1": ("READY", ""), "fake:v2": ("READY", "")}
        assert order(client, "unload").status_code == 200
        assert index(client)["fake:v1"] == ("UNAVAILABLE", "unloaded")
        assert client.get("/v2/models/fake:v1/ready", headers=TOKEN).status_code == 503
        assert client.get("/v2/health/ready").status_code == 200
        refused = client.post("/v2/models/fake:v1/infer", json=item, headers=TOKEN)
        assert refused.status_code == 404
        assert "/v2/repository/models/fake:v1/load" in refused.json()["error"]
        about = client.get("/v2/models/fake:v1", headers=TOKEN).json()
        assert about["parameters"]["recipe"] == "mean"
        assert about["parameters"]["dtype"] == "float32"  # known from when it was loaded
        assert order(client, "load").status_code == 200
        assert index(client)["fake:v1"] == ("READY", "")
        assert client.post("/v2/models/fake:v1/infer", json=item, headers=TOKEN).status_code == 200


def test_the_index_can_be_asked_for_what_is_ready(serving: Any) -> None:
    with serving(rewards=REWARDS, token="secret", lazy=True, pinned="fake:v2") as client:
        assert list(index(client)) == ["fake:v1", "fake:v2"]
        assert list(index(client, ready=True)) == ["fake:v2"]
        for bad in (b"[]", b"{", b"\xff"):
            assert client.post("/v2/repository/index", content=bad, headers=TOKEN).status_code == 400


def test_without_a_token_nobody_loads_or_unloads(serving: Any) -> None:
    with serving(rewards=REWARDS) as client:
        for what in ("load", "unload"):
            response = order(client, what)
            assert response.status_code == 403
            assert "REWARDZOO_TOKEN" in response.json()["error"]
        assert set(index(client).values()) == {("READY", "")}


def test_a_wrong_token_and_an_unknown_name_are_refused(serving: Any) -> None:
    with serving(rewards=REWARDS, token="secret") as client:
        assert client.post("/v2/repository/models/fake:v1/unload").status_code == 401
        assert order(client, "load", "nope").status_code == 404
        assert order(client, "load", "fake:v1+fake:v2").status_code == 404


def test_tritons_own_client_unloads_and_loads(listening: Any) -> None:
    triton = pytest.importorskip("tritonclient.http")
    with listening(rewards=REWARDS, token="secret", lazy=True) as url:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        assert not client.is_model_ready("fake:v1", headers=TOKEN)
        client.load_model("fake:v1", headers=TOKEN)
        assert client.is_model_ready("fake:v1", headers=TOKEN)
        inputs = [
            triton.InferInput("images", [1, 4, 4, 3], "UINT8"),
            triton.InferInput("prompts", [1], "BYTES"),
        ]
        inputs[0].set_data_from_numpy(np.zeros((1, 4, 4, 3), np.uint8))
        inputs[1].set_data_from_numpy(np.array([b"a"], dtype=np.object_))
        assert client.infer("fake:v2", inputs, headers=TOKEN).as_numpy("scores").tolist() == [0]
        client.unload_model("fake:v1", headers=TOKEN)
        assert not client.is_model_ready("fake:v1", headers=TOKEN)
        client.close()
