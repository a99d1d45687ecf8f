"""Requests that are larger than a server allows, in any of the ways a request can be large."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from rewardzoo.clients import RewardClient, wire

URL = "/v2/models/fake:v1/infer"


def post(client: Any, images: Any, prompts: list[str], **more: Any) -> Any:
    tensors = {wire.IMAGES: images, wire.PROMPTS: wire.bytes_tensor(prompts), **more}
    chunks, length = wire.encode({}, tensors, key="inputs")
    return client.post(URL, content=b"".join(chunks), headers={wire.HEADER: str(length)})


def errors(response: Any) -> list[str]:
    assert response.status_code == 200, response.text
    outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
    return outputs["errors"]


def pixels(*sizes: int) -> Any:
    return np.zeros((len(sizes), sizes[0], sizes[0], 3), np.uint8)


def test_more_items_than_allowed_are_refused_before_any_is_scored(serving: Any, model: Any, png: Any) -> None:
    with serving(model, max_items=3) as client:
        assert post(client, pixels(4, 4, 4), ["a"] * 3).status_code == 200
        model.sizes.clear()
        for images in (pixels(4, 4, 4, 4), wire.bytes_tensor([png()] * 4)):
            response = post(client, images, ["a"] * 4)
            assert response.status_code == 413
            assert "limit is 3" in response.json()["error"]
        files = [("images", ("a.png", png(), "image/png"))] * 4
        response = client.post(
            "/score", files=files, data={"prompts": '["a","a","a","a"]', "reward": "fake:v1"}
        )
        assert response.status_code == 413
    assert model.sizes == []


def test_the_client_cuts_a_call_to_the_servers_limit(listening: Any, png: Any) -> None:
    with listening(max_items=4) as url, RewardClient(url, max_in_flight=1) as client:
        scores = client.score([png((255, 255, 255))] * 19, "a", reward="fake:v1")
    assert scores.tolist() == [1.0] * 19


def test_texts_beyond_the_limit_are_not_even_unpacked(serving: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("rewardzoo.clients.wire.from_raw", lambda *_: pytest.fail("they were unpacked"))
    head = {
        "inputs": [
            {
                "name": "prompts",
                "datatype": "BYTES",
                "shape": [2**20],
                "parameters": {"binary_data_size": 2**22},
            }
        ]
    }
    text = json.dumps(head).encode()
    with serving() as client:
        response = client.post(URL, content=text + bytes(2**22), headers={wire.HEADER: str(len(text))})
    assert response.status_code == 413
    assert "1048576 BYTES elements, the limit is 4096" in response.json()["error"]


def test_an_image_over_the_limit_fails_alone_raw_or_encoded(serving: Any, png: Any) -> None:
    with serving(max_pixels=100) as client:
        files = wire.bytes_tensor([png(size=10), png(size=11)])
        small, large = errors(post(client, files, ["a", "b"]))
        assert small == ""
        assert "11x11, 121 pixels; the limit is 100" in large
        assert "the limit is 100" in errors(post(client, pixels(11), ["a"]))[0]
        assert errors(post(client, pixels(10), ["a"])) == [""]


def test_a_prompt_over_the_limit_fails_alone(serving: Any) -> None:
    with serving(max_prompt_bytes=5) as client:
        fits, over = errors(post(client, pixels(4, 4), ["aéàx"[:3], "aéàx"]))
    assert fits == ""
    assert "6 bytes of UTF-8, the limit is 5" in over


@pytest.mark.parametrize("where", ["header", "body", "metadata", "form"])
def test_json_over_the_limit_is_not_parsed(serving: Any, monkeypatch: Any, where: str) -> None:
    text = "[" + "{}," * 400_000 + "{}]"
    monkeypatch.setattr(
        json, "loads", lambda raw, parse=json.loads: parse(raw) if len(raw) < 10**6 else pytest.fail("parsed")
    )
    with serving(max_json_mb=1) as client:
        if where == "metadata":
            response = post(client, pixels(4), ["a"], metadata=wire.bytes_tensor([text]))
        elif where == "form":
            files = [("images", ("a.png", b"", "image/png"))]
            data = {"prompts": '["a"]', "metadata": text, "reward": "fake:v1"}
            response = client.post("/score", files=files, data=data)
        else:
            headers = {wire.HEADER: str(len(text))} if where == "header" else {}
            response = client.post(URL, content=text, headers=headers)
    assert response.status_code == 413
    assert "bytes of JSON, the limit is 1,048,576" in response.json()["error"]


def test_a_length_that_is_no_number_is_400(serving: Any) -> None:
    with serving() as client:
        for length in ("abc", "-1", "1e3", "9" * 30):
            response = client.post(URL, content=iter([b"x"]), headers={"Content-Length": length})
            assert response.status_code == 400
