"""The Open Inference Protocol's routes, in a BentoML service in this process."""

from __future__ import annotations

import gzip
import json
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from rewardzoo.clients import wire
from rewardzoo.rewards import Score

URL = "/v2/models/fake:v1/infer"
Body = tuple[bytes, dict[str, str]]


def request(images: Any, prompts: Sequence[str | bytes], *, header: Any = None, **more: Any) -> Body:
    """Encode an infer request that wants all outputs binary."""
    tensors = {wire.IMAGES: images, wire.PROMPTS: wire.bytes_tensor(prompts), **more}
    head = {"parameters": {"binary_data_output": True}} if header is None else header
    chunks, length = wire.encode(head, tensors, key="inputs")
    return b"".join(chunks), {wire.HEADER: str(length)}


def pixels(*values: int, size: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Make one grey image a value."""
    return np.stack([np.full((size, size, 3), value, dtype=np.uint8) for value in values])


def infer(client: TestClient, body: Body, **headers: str) -> tuple[list[float], list[str], Any]:
    response = client.post(URL, content=body[0], headers={**body[1], **headers})
    assert response.status_code == 200, response.text
    message = wire.decode(response.content, int(response.headers[wire.HEADER]), key="outputs")
    scores = message.tensors[wire.SCORES]
    assert scores.dtype == np.float32
    return scores.tolist(), [e.decode() for e in message.tensors[wire.ERRORS]], message.header


def refusal(client: TestClient, body: Body, *, url: str = URL, **headers: str) -> tuple[int, str]:
    response = client.post(url, content=body[0], headers={**body[1], **headers})
    return response.status_code, response.json()["error"]


def test_raw_images_are_scored_with_provenance(serving: Any, model: Any) -> None:
    with serving(model) as client:
        header = {"id": "seven", "parameters": {"binary_data_output": True}}
        scores, errors, answer = infer(client, request(pixels(0, 255), ["a", "b"], header=header))
    assert scores == [0.0, 1.0]
    assert errors == ["", ""]
    assert answer["model_name"] == "fake:v1"
    assert answer["id"] == "seven"
    assert answer["parameters"] == model.provenance()


def test_scores_equal_those_of_the_model_in_this_process(serving: Any, model: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    prompts = [f"prompt {i}" for i in range(8)]
    with serving(model) as client:
        scores, _, _ = infer(client, request(images, prompts))
    assert scores == model.score(list(images), prompts)
    assert model.sizes[0] == 8


def test_encoded_images_are_scored_and_a_truncated_one_fails_alone(
    serving: Any, png: Callable[..., bytes]
) -> None:
    images = [png((255, 255, 255)), png(size=64)[:-60], b"GIF89a"]
    with serving() as client:
        scores, errors, _ = infer(client, request(wire.bytes_tensor(images), ["a", "b", "c"]))
    assert scores[0] == 1.0
    assert np.isnan(scores[1:]).all()
    assert errors[0] == ""
    assert all(errors[1:])


def test_prompts_and_metadata_may_be_columns(serving: Any) -> None:
    column = wire.bytes_tensor(["a", "b"]).reshape(2, 1)
    tensors = {
        "images": pixels(0, 255),
        "prompts": column,
        "metadata": wire.bytes_tensor(["{}", ""]),
    }
    header = {"parameters": {"binary_data_output": True}}
    chunks, length = wire.encode(header, tensors, key="inputs")
    with serving() as client:
        scores, _, _ = infer(client, (b"".join(chunks), {wire.HEADER: str(length)}))
    assert scores == [0.0, 1.0]


@pytest.mark.parametrize(
    ("prompt", "extra", "error"),
    [
        (" ", b"", "the prompt is empty"),
        ("a" * 100_000, b"", "100,000 bytes"),
        (b"\xff", b"", "not UTF-8"),
        ("raise", b"", "breaks the model"),
        ("b", b"[1]", "JSON object"),
        ("b", b"{", "not JSON"),
    ],
)
def test_an_item_that_cannot_be_scored_fails_alone(
    serving: Any, prompt: str | bytes, extra: bytes, error: str
) -> None:
    more = wire.bytes_tensor([b"", extra, b""])
    body = request(pixels(0, 10, 255), ["a", prompt, "c"], metadata=more)
    with serving() as client:
        scores, errors, _ = infer(client, body)
    assert scores[0::2] == [0.0, 1.0]
    assert np.isnan(scores[1])
    assert errors[0::2] == ["", ""]
    assert error in errors[1]


def test_a_failed_item_is_null_in_a_json_answer(serving: Any) -> None:
    body = request(pixels(255, 255), ["a", ""], header={})
    with serving() as client:
        response = client.post(URL, content=body[0], headers=body[1])
    outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
    assert wire.HEADER not in response.headers
    assert outputs["scores"] == [1.0, None]
    assert outputs["errors"][0] == ""
    assert "empty" in outputs["errors"][1]


def test_metadata_reaches_the_reward_and_details_come_back(serving: Any) -> None:
    notes = ['{"say": {"boxes": [[0, 1.5]], "p": NaN}}', "", '{"refuse": "no box"}', '{"say": "é\\ud800"}']
    body = request(pixels(0, 255, 255, 0), list("abcd"), metadata=wire.bytes_tensor(notes))
    with serving() as client:
        response = client.post(URL, content=body[0], headers=body[1])
    tensors = wire.decode(response.content, int(response.headers[wire.HEADER]), key="outputs").tensors
    first, *others = tensors[wire.DETAILS]
    assert json.loads(first, parse_constant=pytest.fail) == {"said": {"boxes": [[0, 1.5]], "p": None}}
    assert others[:2] == [b"", b""]
    assert json.loads(others[2]) == {"said": "é?"}
    assert tensors[wire.ERRORS].tolist() == [b"", b"", b"the metadata is refused: no box", b""]


def test_details_that_are_not_json_fail_their_item_alone(serving: Any, model: Any, monkeypatch: Any) -> None:
    found = [Score(0.5, {"x": object()}), Score(1.0, {"x": np.float32(0.25)})]
    monkeypatch.setattr(model, "evaluate", lambda batch: found)
    with serving(model) as client:
        scores, errors, _ = infer(client, request(pixels(0, 255), ["a", "b"]))
    assert np.isnan(scores[0])
    assert scores[1] == 1.0
    assert "has no form in JSON" in errors[0]


def test_only_the_outputs_asked_for_are_sent(serving: Any) -> None:
    with serving() as client:
        for wanted in (["details"], ["details", "scores"]):
            body = request(pixels(0), ["a"], header={"outputs": [{"name": name} for name in wanted]})
            answer = client.post(URL, content=body[0], headers=body[1]).json()
            assert [output["name"] for output in answer["outputs"]] == wanted


def test_an_empty_request_gets_an_empty_answer(serving: Any) -> None:
    with serving() as client:
        scores, errors, _ = infer(client, request(np.zeros((0, 8, 8, 3), np.uint8), []))
    assert scores == errors == []


@pytest.mark.parametrize(("name", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies_are_read(serving: Any, name: str, compress: Any) -> None:
    body, headers = request(pixels(255), ["a"])
    with serving() as client:
        scores, _, _ = infer(client, (compress(body), headers), **{"Content-Encoding": name})
    assert scores == [1.0]


def test_a_broken_compression_is_400(serving: Any) -> None:
    body, headers = request(pixels(255), ["a"])
    packed = gzip.compress(body)
    with serving() as client:
        for bad in (packed[:-9], packed + b"x", body):
            assert refusal(client, (bad, headers), **{"Content-Encoding": "gzip"})[0] == 400
        status, error = refusal(client, (body, headers), **{"Content-Encoding": "br"})
    assert status == 400
    assert "use gzip or deflate" in error


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_413(serving: Any, encoding: str, declared: bool) -> None:
    body, headers = request(pixels(0, size=700), ["a"])
    if encoding == "gzip":
        body = gzip.compress(body)
    content: Any = body if declared else iter([body[i : i + 65536] for i in range(0, len(body), 65536)])
    with serving(max_body_mb=1) as client:
        status, error = refusal(client, (content, headers), **{"Content-Encoding": encoding})
    assert status == 413
    assert "1,048,576" in error


def test_a_body_of_undeclared_length_is_read(serving: Any) -> None:
    body, headers = request(pixels(255), ["a"])
    content: Any = iter([body[:100], body[100:]])
    with serving() as client:
        assert infer(client, (content, headers))[0] == [1.0]


@pytest.mark.parametrize(
    ("images", "prompts", "error"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), ["a"], "must be UINT8 [N,H,W,3]"),
        (np.zeros((1, 8, 8, 4), np.uint8), ["a"], "[1, 8, 8, 4]"),
        (np.zeros((8, 8, 3), np.uint8), ["a"], "[8, 8, 3]"),
        (np.zeros((2, 8, 8, 3), np.uint8), ["a"], "'images' has 2 items, 'prompts' 1"),
        (np.zeros((2**31 - 1, 0, 8, 3), np.uint8), ["a"], "has 2147483647 items"),
    ],
)
def test_malformed_tensors_are_400_and_named(
    serving: Any, images: Any, prompts: list[str], error: str
) -> None:
    with serving() as client:
        status, said = refusal(client, request(images, prompts))
    assert status == 400
    assert error in said


def test_missing_and_unknown_tensors_are_400(serving: Any) -> None:
    image, prompt = pixels(0), wire.bytes_tensor(["a"])
    bad: list[tuple[dict[str, Any], str]] = [
        ({"images": image}, "'prompts' is missing"),
        ({"prompts": prompt}, "'images' is missing"),
        ({"images": image, "prompts": prompt, "mask": image}, "no input 'mask'"),
        ({"images": image, "prompts": image}, "'prompts' must be BYTES"),
    ]
    with serving() as client:
        for tensors, error in bad:
            chunks, length = wire.encode({}, tensors, key="inputs")
            status, said = refusal(client, (b"".join(chunks), {wire.HEADER: str(length)}))
            assert status == 400
            assert error in said


def test_bodies_that_are_no_messages_are_400(serving: Any) -> None:
    with serving() as client:
        assert refusal(client, (b"not json", {}))[0] == 400
        assert refusal(client, (b"[]", {}))[0] == 400
        assert refusal(client, (b"{}", {wire.HEADER: "99"}))[0] == 400
        assert refusal(client, (b"{}", {wire.HEADER: "-1"}))[0] == 400
        body = request(pixels(0), ["a"], header={"outputs": [{"name": "nope"}]})
        status, error = refusal(client, body)
        assert status == 400
        assert "nope" in error


@pytest.mark.parametrize("name", [float("nan"), float("inf"), 7, None, {}])
def test_an_id_that_is_no_string_is_400(serving: Any, name: Any) -> None:
    body, headers = request(pixels(0), ["a"])
    length = int(headers[wire.HEADER])
    head = json.dumps({**json.loads(body[:length]), "id": name}).encode()
    with serving() as client:
        status, error = refusal(client, (head + body[length:], {wire.HEADER: str(len(head))}))
    assert status == 400
    assert "'id' must be a string" in error


def test_an_unknown_model_or_version_is_404_and_says_what_there_is(serving: Any) -> None:
    body = request(pixels(0), ["a"])
    with serving() as client:
        status, error = refusal(client, body, url="/v2/models/nope/infer")
        assert status == 404
        assert "fake:v1" in error
        assert refusal(client, body, url="/v2/models/fake:v1/versions/2/infer")[0] == 404
        assert client.post(
            "/v2/models/fake%3Av1/versions/1/infer", content=body[0], headers=body[1]
        ).is_success
        assert client.get("/v2/models/nope").status_code == 404
        assert client.get("/v2/models/nope/ready").status_code == 404


def test_a_bare_family_name_means_its_one_released_variant(serving: Any) -> None:
    with serving(rewards="fake:v1,fake:mini") as client:
        assert client.get("/v2/models/fake").json()["name"] == "fake:v1"
    with serving(rewards="fake:v1,fake:v2") as client:
        assert client.get("/v2/models/fake").status_code == 404
    with serving(rewards="fake:mini") as client:
        assert client.get("/v2/models/fake").status_code == 404


def test_metadata_and_index_describe_what_is_served(serving: Any) -> None:
    with serving(rewards="fake:v1, fake:mini") as client:
        server = client.get("/v2").json()
        assert server["name"] == "rewardzoo"
        assert "binary_tensor_data" in server["extensions"]
        index = client.post("/v2/repository/index").json()
        assert [(m["name"], m["state"]) for m in index] == [
            ("fake:v1", "READY"),
            ("fake:mini", "READY"),
        ]
        model = client.get("/v2/models/fake:mini/versions/1").json()
    assert {t["name"]: (t["datatype"], t["shape"]) for t in model["inputs"] + model["outputs"]} == {
        "images": ("UINT8", [-1, -1, -1, 3]),
        "prompts": ("BYTES", [-1]),
        "metadata": ("BYTES", [-1]),
        "scores": ("FP32", [-1]),
        "errors": ("BYTES", [-1]),
        "details": ("BYTES", [-1]),
    }
    assert model["parameters"]["score_high"] == 1.0
    assert model["parameters"]["variant"] == "mini"


def test_health_is_good_once_started(serving: Any) -> None:
    with serving() as client:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/fake:v1/ready", "/readyz"):
            assert client.get(path).status_code == 200


def test_a_full_queue_is_503_with_retry_after(serving: Any, model: Any) -> None:
    model.go.clear()
    statuses: list[int] = []

    def ask(count: int) -> None:
        body = request(pixels(*[0] * count), ["a"] * count)
        statuses.append(client.post(URL, content=body[0], headers=body[1]).status_code)

    with serving(model, max_queue=4) as client:
        held = [threading.Thread(target=ask, args=(20,))]
        held[0].start()
        time.sleep(0.3)  # 8 run, 8 are prepared, 4 wait
        body = request(pixels(0), ["a"])
        response = client.post(URL, content=body[0], headers=body[1])
        model.go.set()
        held[0].join()
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert "wait" in response.json()["error"]
    assert statuses == [200]


def test_a_request_past_its_deadline_is_504(serving: Any, model: Any) -> None:
    model.go.clear()
    with serving(model, timeout=0.2) as client:
        status, error = refusal(client, request(pixels(0), ["a"]))
        model.go.set()
    assert status == 504
    assert "0 of 1 items" in error


def test_a_caller_can_ask_for_less_time(serving: Any, model: Any) -> None:
    model.go.clear()
    with serving(model) as client:
        status, error = refusal(client, request(pixels(0), ["a"]), **{"Request-Timeout": "0.2"})
        assert status == 504
        assert "0 of 1 items" in error
        status, error = refusal(client, request(pixels(0), ["a"]), **{"Request-Timeout": "soon"})
        assert status == 400
        assert "got 'soon'" in error
        model.go.set()


def test_an_unexpected_failure_is_500_with_an_id_and_no_traceback(
    serving: Any, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(model) as client:
        model.provenance = lambda: 1 / 0
        status, error = refusal(client, request(pixels(0), ["a"]))
    assert status == 500
    assert error.startswith("internal error, request id ")
    assert "ZeroDivision" not in error
    assert error.split()[4].rstrip(":") in caplog.text


def test_a_lost_device_turns_the_server_unready(serving: Any, model: Any) -> None:
    model.broken = torch.AcceleratorError("an illegal memory access was encountered")
    with serving(model) as client:
        status, error = refusal(client, request(pixels(0, 1), ["a", "b"]))
        assert status == 503
        assert "restart the server" in error
        response = client.post(URL, content=b"")
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) >= 5
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/fake:v1/ready").status_code == 503
        assert client.post("/v2/repository/index").json()[0]["state"] == "UNAVAILABLE"
    assert model.sizes == [2]


def test_plain_json_requests_are_scored(serving: Any) -> None:
    body = {
        "inputs": [
            {
                "name": "images",
                "datatype": "UINT8",
                "shape": [1, 2, 2, 3],
                "data": pixels(255, size=2).tolist(),
            },
            {"name": "prompts", "datatype": "BYTES", "shape": [1], "data": ["a"]},
        ],
        "outputs": [{"name": "scores"}],
    }
    with serving() as client:
        response = client.post(URL, content=json.dumps(body))
    assert [(o["name"], o["data"]) for o in response.json()["outputs"]] == [("scores", [1.0])]
