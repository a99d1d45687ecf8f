"""`RewardClient("grpc://…")` against a server of the protocol in this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

pytest.importorskip("grpc")
pytest.importorskip("tritonclient")

from tritonclient.grpc import service_pb2 as messages

from rewardzoo.clients import RewardClient, ServedReward, grpc_transport
from rewardzoo.errors import (
    DeadlineError,
    MissingExtraError,
    NotServedError,
    OverloadedError,
    RequestError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)

from .grpc_server import Code, FakeTriton, Running, answer_of, fails

IMAGES = [np.full((2, 2, 3), i, dtype=np.uint8) for i in range(5)]
SUMS = [12.0 * i for i in range(5)]


@pytest.fixture
def triton() -> FakeTriton:
    return FakeTriton()


@pytest.fixture
def url(triton: FakeTriton) -> Iterator[str]:
    running = Running(triton)
    yield running.url
    running.stop()


def score(url: str, timeout: float = 10, **options: Any) -> Any:
    with RewardClient(url, timeout=timeout, **options) as client:
        return client.score(IMAGES, "a cat", reward="sum:v1")


def test_scores_come_back_in_order_with_provenance(url: str, triton: FakeTriton) -> None:
    with RewardClient(url) as client:
        result = client.score_result(IMAGES, list("abcde"), reward="sum:v1", metadata=[{"i": 1}] * 5)
    assert_array_equal(result.scores, SUMS)
    assert result.provenance == {"recipe": "sum"}
    (seen,) = triton.seen
    assert_array_equal(seen["images"], np.stack(IMAGES))
    assert seen["prompts"].tolist() == [[b"a"], [b"b"], [b"c"], [b"d"], [b"e"]]
    assert seen["metadata"].tolist() == [[b'{"i": 1}']] * 5


def test_a_reward_is_found_under_the_name_that_triton_can_hold_and_asked_for_once(
    url: str, triton: FakeTriton
) -> None:
    with RewardClient(url) as client:
        client.score(IMAGES, "a", reward="sum:v1")
        client.score(IMAGES, "a", reward="sum:v1")
        client.score(IMAGES, "a", reward="sum.v1")
    assert triton.asked == ["sum:v1", "sum.v1", "sum.v1"]
    assert {r.model_name for r in triton.requests} == {"sum.v1"}


def test_a_reward_that_is_not_served_is_named_as_the_caller_named_it(url: str) -> None:
    with RewardClient(url) as client, pytest.raises(NotServedError, match="'none:v1' is not found"):
        client.score(IMAGES, "a", reward="none:v1")


def test_files_go_undecoded_to_the_input_that_is_declared_for_them(
    url: str, triton: FakeTriton, tmp_path: Any
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 3), "red").save(path)
    with RewardClient(url) as client:
        client.score([path, *IMAGES], "a cat", reward="sum:v1")
    files, pixels = sorted(triton.seen, key=lambda tensors: "images" in tensors)
    assert files["image_files"].tolist() == [[path.read_bytes()]]
    assert pixels["images"].shape == (5, 2, 2, 3)


def test_files_are_images_to_a_server_without_an_input_for_files(
    url: str, triton: FakeTriton, tmp_path: Any
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 3), "red").save(path)
    triton.inputs = {"images": 1, "prompts": 1}
    with RewardClient(url) as client:
        client.score([path], "a cat", reward="sum:v1")
    assert triton.seen[0]["images"].tolist() == [path.read_bytes()]
    assert triton.seen[0]["prompts"].tolist() == [b"a cat"]


def test_views_and_large_images_arrive_whole(url: str, triton: FakeTriton) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 900, 900, 4), dtype=np.uint8)
    with RewardClient(url) as client:
        scores = client.score(noise, "a cat", reward="sum:v1")
    assert_array_equal(scores, noise[..., :3].sum(axis=(1, 2, 3)).astype(np.float32))


def test_a_part_is_cut_to_what_the_model_takes_in_a_request(url: str, triton: FakeTriton) -> None:
    triton.max_batch = 2
    prompts = ["a", "fail", "a", "a", "fail"]
    with RewardClient(url) as client:
        result = client.score_result(IMAGES, prompts, reward="sum:v1", metadata=[{}] * 5)
    assert [len(seen["prompts"]) for seen in triton.seen] == [2, 2, 1]
    assert_array_equal(result.scores, [0, np.nan, 24, 36, np.nan])
    assert {i: str(e) for i, e in result.errors.items()} == {1: "bad", 4: "bad"}


def test_triton_is_told_how_long_the_caller_waits(url: str, triton: FakeTriton) -> None:
    score(url, timeout=7)
    assert 6e6 < triton.requests[0].parameters["timeout"].int64_param < 7e6
    with RewardClient(url, timeout=float("inf")) as client:
        client.score(IMAGES, "a", reward="sum:v1")
    assert "timeout" not in triton.requests[1].parameters


def test_the_token_goes_out_as_a_bearer_token_or_not_at_all(url: str, triton: FakeTriton) -> None:
    score(url, token="secret")
    score(url)
    assert [h.get("authorization") for h in triton.headers] == ["Bearer secret", None]


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (Code.UNAVAILABLE, "away"),
        (Code.UNAVAILABLE, "Exceeds maximum queue size"),
        (Code.INTERNAL, "broken"),
        (Code.ABORTED, "stopping"),
        (Code.RESOURCE_EXHAUSTED, "full"),
        (Code.DEADLINE_EXCEEDED, "late"),
        (Code.NOT_FOUND, "Request for unknown model: 'sum.v1' has no available versions"),
    ],
)
def test_what_may_pass_is_tried_again(url: str, triton: FakeTriton, code: Any, details: str) -> None:
    triton.script = [fails(code, details)]
    assert_array_equal(score(url), SUMS)
    assert len(triton.requests) == 2


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.INVALID_ARGUMENT, RequestError),
        (Code.UNIMPLEMENTED, RequestError),
        (Code.UNAUTHENTICATED, UnauthorizedError),
        (Code.PERMISSION_DENIED, UnauthorizedError),
        (Code.NOT_FOUND, NotServedError),
    ],
)
def test_what_cannot_help_is_not_tried_again(
    url: str, triton: FakeTriton, code: Any, kind: type[Exception]
) -> None:
    triton.script = [fails(code)]
    with pytest.raises(kind, match=rf"^because \(gRPC {code.name} from grpc://127.0.0.1:\d+\)$"):
        score(url)
    assert len(triton.requests) == 1


def test_a_full_queue_is_named_when_the_time_is_up(url: str, triton: FakeTriton) -> None:
    triton.script = [fails(Code.UNAVAILABLE, "Exceeds maximum queue size")] * 50
    with pytest.raises(OverloadedError, match=r"^Exceeds maximum queue size .*\(tried \d+ times? in"):
        score(url, timeout=0.5)


def test_a_request_over_the_servers_own_limit_is_cut_until_it_fits(triton: FakeTriton) -> None:
    running = Running(triton, limit=100_000)
    try:
        with RewardClient(running.url) as client:
            scores = client.score(np.ones((9, 100, 100, 3), np.uint8), "a", reward="sum:v1")
            assert scores.tolist() == [30_000] * 9
            assert [len(seen["images"]) for seen in triton.seen] == [2, 2, 2, 2, 1]
            with pytest.raises(TooLargeError, match="larger than max"):
                client.score([np.zeros((300, 300, 3), np.uint8)], "a", reward="sum:v1")
    finally:
        running.stop()


def test_a_request_over_the_protocols_limit_is_not_sent(
    url: str, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_transport, "MAX_MESSAGE", 50)
    with pytest.raises(TooLargeError, match=r"has \d+ bytes, gRPC takes 50: scale the image down"):
        score(url)
    assert not triton.requests


def test_a_server_that_stays_silent_is_given_up_at_the_deadline(url: str, triton: FakeTriton) -> None:
    triton.script = [fails(Code.INTERNAL, wait=1.0)]
    start = time.monotonic()
    with pytest.raises(DeadlineError, match="DEADLINE_EXCEEDED"):
        score(url, timeout=0.3)
    assert time.monotonic() - start < 0.9


def test_a_server_that_stays_away_is_given_up_at_the_deadline() -> None:
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=r"cannot reach grpc://127.0.0.1:1: .*\(tried \d+ time"):
        score("grpc://127.0.0.1:1", timeout=0.5)
    assert time.monotonic() - start < 1


def test_a_server_that_comes_back_is_found_again(triton: FakeTriton) -> None:
    first = Running(triton)
    with RewardClient(first.url, timeout=20) as client:
        client.score(IMAGES, "a", reward="sum:v1")
        first.stop()
        assert not client.ready()
        with ThreadPoolExecutor(1) as pool:
            scores = pool.submit(client.score, IMAGES, "a", reward="sum:v1")
            time.sleep(0.5)
            second = Running(triton, port=first.port)
            assert_array_equal(scores.result(), SUMS)
        client.wait_ready(timeout=5)
    second.stop()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (answer_of(), "0 scores, 0 errors and 0 details for 5 items"),
        (answer_of(scores=np.zeros((5, 2), np.float32)), r"'scores' must be \[N\] or \[N,1\]"),
        (answer_of(scores=np.zeros(5, np.int64)), "'scores' cannot be of dtype int64"),
        (
            messages.ModelInferResponse(outputs=[{"name": "scores", "datatype": "BF16", "shape": [5]}]),
            "'scores' is of datatype 'BF16'",
        ),
        (
            messages.ModelInferResponse(
                outputs=[{"name": "scores", "datatype": "FP32", "shape": [5]}], raw_output_contents=[b"123"]
            ),
            "malformed message: 5 elements of FP32 are 20 bytes, got 3",
        ),
        (
            messages.ModelInferResponse(
                outputs=[{"name": "scores", "datatype": "FP32", "shape": [5]}],
                raw_output_contents=[b"", b""],
            ),
            "1 outputs, 2 of them with contents",
        ),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_request_error(
    url: str, triton: FakeTriton, answer: Any, says: str
) -> None:
    triton.script = [lambda _: answer]
    with pytest.raises(RequestError, match=says):
        score(url)


def test_contents_that_are_not_raw_and_parameters_are_read(url: str, triton: FakeTriton) -> None:
    answer = answer_of({"weights": "abc"})
    answer.outputs.add(name="scores", datatype="FP32", shape=[2]).contents.fp32_contents.extend([1.5, 2])
    said = answer.outputs.add(name="details", datatype="BYTES", shape=[2])
    said.contents.bytes_contents.extend([b"", b'{"step": 3}'])
    triton.script = [lambda _: answer]
    with RewardClient(url) as client:
        result = client.score_result(IMAGES[:2], "a", reward="sum:v1")
    assert result.scores.tolist() == [1.5, 2]
    assert list(result.details) == [{}, {"step": 3}]
    assert result.provenance == {"weights": "abc"}


def test_the_hosted_rewards_are_listed_by_their_own_names(url: str) -> None:
    with RewardClient(url) as client:
        found = client.rewards()
    assert found == [ServedReward("sum:v1", True, {"recipe": "sum"}), ServedReward("late.v1", False)]


def test_ready_says_whether_the_server_answers(url: str, triton: FakeTriton) -> None:
    with RewardClient(url) as client:
        assert client.ready()
        client.wait_ready(timeout=1)
        triton.is_ready = False
        assert not client.ready()
        with pytest.raises(DeadlineError, match=r"was not ready within 0\.3 s"):
            client.wait_ready(timeout=0.3)


@pytest.mark.parametrize("url", ["grpc://", "grpc://host", "host:8001"])
def test_a_url_that_cannot_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="or grpc://host:8001"):
        RewardClient(url)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rewardzoo.clients.grpc_transport")
    monkeypatch.delattr("rewardzoo.clients.grpc_transport")
    monkeypatch.setattr("rewardzoo.errors.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rewardzoo\[triton\]'"):
        RewardClient("grpc://127.0.0.1:8001")
