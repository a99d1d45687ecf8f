from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from rewardzoo.clients import RewardClient, ServedReward, http_transport, wire
from rewardzoo.errors import (
    DeadlineError,
    NotServedError,
    OverloadedError,
    RequestError,
    RewardZooError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)

IMAGES = [np.full((2, 2, 3), i, dtype=np.uint8) for i in range(5)]
SUMS = [12.0 * i for i in range(5)]


def score(server: Any, timeout: float = 10, **options: Any) -> Any:
    with RewardClient(server.url, timeout=timeout, **options) as client:
        return client.score(IMAGES, "a cat", reward="sum:v1")


def mocked(*answers: httpx.Response) -> RewardClient:
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        metadata = httpx.Response(200, json={})
        return metadata if request.method == "GET" else left.pop(0)

    return RewardClient("http://mock", timeout=2, transport=httpx.MockTransport(handle))


def test_scores_come_back_in_order_with_provenance(server: Any) -> None:
    with RewardClient(server.url) as client:
        result = client.score_result(IMAGES, list("abcde"), reward="sum:v1")
    assert_array_equal(result.scores, SUMS)
    assert result.provenance == {"recipe": "sum"}
    assert server.seen[0].tensors["prompts"].tolist() == [b"a", b"b", b"c", b"d", b"e"]


def test_files_are_sent_undecoded(server: Any, tmp_path: Any) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 3), "red").save(path)
    with RewardClient(server.url) as client:
        client.score([path, path.read_bytes()], "a cat", reward="sum")
    assert server.seen[0].tensors["images"].tolist() == [path.read_bytes()] * 2


def test_a_large_body_arrives_whole_with_its_length(server: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 900, 900, 3), dtype=np.uint8)
    with RewardClient(server.url) as client:
        scores = client.score(noise, "a cat", reward="sum")
    assert_array_equal(scores, noise.sum(axis=(1, 2, 3)).astype(np.float32))
    assert "Transfer-Encoding" not in server.headers[0]


def test_the_name_is_escaped_and_metadata_asked_once(server: Any) -> None:
    with RewardClient(server.url) as client:
        client.score(IMAGES, "a", reward="a/b:c d")
        client.score(IMAGES, "a", reward="a/b:c d")
    infer = "/v2/models/a%2Fb%3Ac%20d/infer"
    assert server.paths == ["/v2/models/a%2Fb%3Ac%20d", infer, infer]


def test_columns_are_sent_where_the_server_declares_them(server: Any) -> None:
    server.columns = True
    with RewardClient(server.url) as client:
        scores = client.score(IMAGES, "a", reward="sum", metadata=[{}] * 5)
    assert_array_equal(scores, SUMS)
    assert server.seen[0].tensors["prompts"].shape == (5, 1)
    assert server.seen[0].tensors["metadata"].shape == (5, 1)


def test_the_token_goes_out_as_a_bearer_token_or_not_at_all(server: Any) -> None:
    score(server, token="secret")
    score(server)
    assert [h.get("Authorization") for h in server.headers] == ["Bearer secret", None]


def test_a_request_says_who_it_is_and_how_long_it_is_waited_for(server: Any, answer: Any) -> None:
    server.script = [answer(503), answer(503)]
    score(server, timeout=10)
    names = [h["X-Request-ID"] for h in server.headers]
    assert len(names) == 3
    assert len(set(names)) == 1
    assert server.seen[0].header["id"] == names[0]
    waits = [float(h["Request-Timeout"]) for h in server.headers]
    assert 10 > waits[0] > waits[1] > waits[2] > 5


@pytest.mark.parametrize("status", [429, 503, 500, 502, 504])
def test_what_may_pass_is_tried_again(server: Any, answer: Any, status: int) -> None:
    server.script = [answer(status), answer(status)]
    assert_array_equal(score(server), SUMS)


def test_a_dropped_connection_is_tried_again_with_the_whole_body(server: Any, answer: Any) -> None:
    server.script = [answer(drop=True)]
    assert_array_equal(score(server), SUMS)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestError),
        (401, UnauthorizedError),
        (403, UnauthorizedError),
        (404, NotServedError),
        (302, RequestError),
    ],
)
def test_what_cannot_help_is_not_tried_again(
    server: Any, answer: Any, status: int, kind: type[RewardZooError]
) -> None:
    server.script = [answer(status, b'{"error": "because"}')]
    with pytest.raises(kind, match=rf"^because \(HTTP {status} from http://127.0.0.1.*/infer\)$"):
        score(server)
    assert len(server.headers) == 1


def test_a_request_over_the_servers_limit_is_cut_until_it_fits_and_the_size_kept(
    server: Any, answer: Any
) -> None:
    server.script = [answer(413)]
    with RewardClient(server.url) as client:
        assert_array_equal(client.score(IMAGES, "a", reward="sum"), SUMS)
        assert_array_equal(client.score(IMAGES, "a", reward="sum"), SUMS)
    assert [len(message.tensors["images"]) for message in server.seen] == [2, 2, 1, 2, 2, 1]


def test_an_image_over_the_servers_limit_is_too_large(server: Any, answer: Any) -> None:
    server.script = [answer(413, b'{"error": "over 9 bytes"}')] * 3
    with RewardClient(server.url) as client, pytest.raises(TooLargeError, match=r"^over 9 bytes \(HTTP 413"):
        client.score(IMAGES, "a", reward="sum")


def test_tritons_name_and_limit_are_found() -> None:
    sent = []
    triton = {
        "/v2/models/sum.v1": {"inputs": [{"name": "prompts", "shape": [-1, 1]}]},
        "/v2/models/sum.v1/config": {"max_batch_size": 3, "parameters": {"name": {"string_value": "sum:v1"}}},
    }

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            found = triton.get(request.url.path)
            return (
                httpx.Response(200, json=found) if found else httpx.Response(404, json={"error": "unknown"})
            )
        if request.url.path == "/v2/repository/index":
            return httpx.Response(200, json=[{"name": "sum.v1"}])
        length = wire.parse_json_length(request.headers[wire.HEADER])
        count = len(wire.decode(request.read(), length, key="inputs").tensors["prompts"])
        sent.append((request.url.path, count))
        scores = {"name": "scores", "datatype": "FP32", "shape": [count, 1], "data": [1.0] * count}
        return httpx.Response(200, json={"outputs": [scores]})

    with RewardClient("http://mock", transport=httpx.MockTransport(handle)) as client:
        assert client.score(IMAGES, "a", reward="sum:v1").tolist() == [1] * 5
        assert client.rewards() == [ServedReward("sum:v1", True)]
        with pytest.raises(NotServedError, match=r"unknown .*none"):
            client.score(IMAGES, "a", reward="none:v1")
    assert sent == [("/v2/models/sum.v1/infer", 3), ("/v2/models/sum.v1/infer", 2)]


def test_retry_after_is_waited_for(server: Any, answer: Any) -> None:
    server.script = [answer(503, headers={"Retry-After": "1"})]
    start = time.monotonic()
    assert_array_equal(score(server), SUMS)
    assert time.monotonic() - start >= 1


def test_a_retry_after_beyond_the_deadline_ends_the_call_at_once(server: Any, answer: Any) -> None:
    server.script = [answer(503, b'{"error": "full"}', {"Retry-After": "60"})]
    with pytest.raises(OverloadedError, match=r"^full .*\(tried 1 time in 0.. s\)") as error:
        score(server)
    assert error.value.retry_after == 60


def test_a_server_that_stays_silent_is_given_up_at_the_deadline(server: Any, answer: Any) -> None:
    server.script = [answer(wait=5)]
    start = time.monotonic()
    with pytest.raises(DeadlineError, match=r"no answer to POST .* \(tried 1 time in 0.. s\)"):
        score(server, timeout=0.3)
    assert time.monotonic() - start < 1.5


def test_a_server_that_stays_away_is_given_up_at_the_deadline(server: Any) -> None:
    with RewardClient("http://127.0.0.1:1", timeout=0.5) as client:
        start = time.monotonic()
        with pytest.raises(UnavailableError, match=r"cannot reach http://127.0.0.1:1.*\(tried \d+ time"):
            client.score(IMAGES, "a", reward="sum")
    assert time.monotonic() - start < 1


def test_a_server_that_dies_and_comes_back_goes_unnoticed(make_server: Any) -> None:
    first = make_server()
    first.start()
    second = make_server(port=first.port)
    killed = threading.Event()

    def kill_and_restart() -> None:
        while len(first.seen) < 3:
            time.sleep(0.001)
        first.stop()
        killed.set()
        time.sleep(0.5)
        second.start()

    thread = threading.Thread(target=kill_and_restart)
    thread.start()
    images = [np.full((64, 64, 3), i % 200, dtype=np.uint8) for i in range(2000)]
    with RewardClient(first.url, timeout=20) as client:
        scores = client.score(images, "a cat", reward="sum")
    thread.join()
    second.stop()
    assert killed.is_set()
    assert second.seen
    assert_array_equal(scores, [64 * 64 * 3 * (i % 200) for i in range(2000)])


@pytest.mark.parametrize(
    ("answered", "says"),
    [
        (httpx.Response(200, text="<html>"), "malformed message: the header is not JSON"),
        (httpx.Response(200, json={}), "0 scores, 0 errors and 0 details for 5 items"),
        (
            httpx.Response(
                200,
                json={
                    "outputs": [
                        {"name": "scores", "shape": [5], "datatype": "FP32", "data": [1] * 5},
                        {
                            "name": "details",
                            "shape": [5],
                            "datatype": "BYTES",
                            "data": ["", "", "[]", "", ""],
                        },
                    ]
                },
            ),
            "malformed message: the details must be a JSON object, got list",
        ),
        (
            httpx.Response(
                200,
                json={"outputs": [{"name": "scores", "shape": [1], "datatype": "BYTES", "data": ["a"]}]},
            ),
            "'scores' cannot be of dtype object",
        ),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_request_error(answered: Any, says: str) -> None:
    with mocked(answered) as client, pytest.raises(RequestError, match=says):
        client.score(IMAGES, "a", reward="sum")


def test_a_request_names_no_output_so_that_any_server_answers_with_what_it_has(server: Any) -> None:
    with RewardClient(server.url) as client:
        result = client.score_result(IMAGES, "a", reward="sum")
    assert "outputs" not in server.seen[0].header
    assert list(result.details) == [{}] * 5


def test_errors_of_items_reach_the_caller_from_json_and_binary() -> None:
    scores = np.array([1, np.nan], np.float32)
    tensors = {
        "scores": scores,
        "errors": wire.bytes_tensor(["", "blurred"]),
        "details": wire.bytes_tensor(['{"step": 3}', ""]),
    }
    for binary in ([], list(tensors)):
        chunks, length = wire.encode({}, tensors, key="outputs", binary=binary)
        answered = httpx.Response(
            200, content=b"".join(chunks), headers={wire.HEADER: str(length)} if binary else {}
        )
        with mocked(answered) as client:
            result = client.score_result(IMAGES[:2], "a", reward="sum")
        assert_array_equal(result.scores, scores)
        assert {i: str(e) for i, e in result.errors.items()} == {1: "blurred"}
        assert list(result.details) == [{"step": 3}, {}]


def test_the_hosted_rewards_are_listed_with_what_they_rest_on(server: Any) -> None:
    server.index = [{"name": "a:b", "state": "READY"}, {"name": "c", "state": "LOADING"}]
    with RewardClient(server.url) as client:
        found = client.rewards()
    assert found == [ServedReward("a:b", True, {"recipe": "sum"}), ServedReward("c", False, {})]


def test_ready_says_whether_the_server_answers(server: Any) -> None:
    with RewardClient(server.url) as client:
        assert client.ready()
        client.wait_ready(timeout=1)
    with RewardClient("http://127.0.0.1:1") as client:
        assert not client.ready()
        with pytest.raises(DeadlineError, match=r"was not ready within 0.3 s: is it running"):
            client.wait_ready(timeout=0.3)


@pytest.mark.parametrize("url", ["127.0.0.1:3000", "", "ftp://host", "http://"])
def test_a_url_that_cannot_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="must look like http://host:3000"):
        RewardClient(url)


def test_a_body_of_large_arrays_is_sent_from_their_memory_and_small_pieces_together() -> None:
    big = memoryview(bytes(5 * 2**19))
    pieces = list(http_transport._pieces([b"ab", b"c", big, b"", b"de", *[b"x" * 40_000] * 3]))
    assert [len(p) for p in pieces] == [3, 5 * 2**19, 80_002, 40_000]
    assert pieces[1] is big
