from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from rewardzoo.services.access_log import RequestRecord, current_id
from rewardzoo.services.logs import JSONFormatter, TextFormatter, configure

ID = "X-Request-ID"


def lines(caplog: pytest.LogCaptureFixture) -> list[RequestRecord]:
    return [record.msg for record in caplog.records if record.name == "rewardzoo.access"]


@pytest.fixture
def access(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "rewardzoo.access")
    return caplog


def post(client: Any, png: Any, prompts: list[str], **headers: str) -> Any:
    files = [("images", (f"{i}.png", png(), "image/png")) for i in range(len(prompts))]
    data = {"prompts": json.dumps(prompts), "reward": "fake:v1"}
    return client.post("/score?token=secret", files=files, data=data, headers=headers)


@pytest.mark.parametrize("given", ["abc-123", "!" * 128, "a/b=c+d~"])
def test_the_callers_id_is_kept(serving: Any, access: Any, given: str) -> None:
    with serving() as client:
        assert client.get("/v2", headers={ID: given}).headers[ID] == given
    assert [line.id for line in lines(access)] == [given]


@pytest.mark.parametrize("given", [None, "", "a b", "a\tb", "é", "x" * 129])
def test_what_is_no_id_is_replaced(serving: Any, given: str | None) -> None:
    headers = {} if given is None else {ID: given.encode()}
    with serving() as client:
        ids = [client.get("/v2", headers=headers).headers[ID] for _ in range(2)]
    assert ids[0] != ids[1]
    assert all(len(found) == 32 and found.isalnum() for found in ids)


def test_a_request_is_one_line_with_what_became_of_its_items(serving: Any, access: Any, png: Any) -> None:
    with serving() as client:
        response = post(client, png, ["a", "", "c"], **{ID: "seven"})
    (line,) = lines(access)
    assert line.id == "seven" == response.headers[ID]
    assert (line.method, line.path, line.status) == ("POST", "/score", 200)
    assert (line.reward, line.items, line.ok) == ("fake:v1", 3, 2)
    assert line.bytes_in == int(response.request.headers["content-length"])
    assert 0 < line.seconds < 10
    assert line.remote == "testclient:50000"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nope", 404), ("POST", "/v2", 405), ("GET", "/v2/x%0Ay", 404)]
)
def test_requests_that_reach_no_route_are_logged_too(
    serving: Any, access: Any, method: str, path: str, status: int
) -> None:
    with serving() as client:
        client.request(method, path)
    (line,) = lines(access)
    assert (line.method, line.path, line.status) == (method, path, status)


def test_a_refused_caller_is_logged_without_the_token_that_was_tried(serving: Any, access: Any) -> None:
    with serving(token="s3cret") as client:
        client.get("/v2?token=s3cret", headers={"Authorization": "Bearer guess"})
        client.get("/v2?token=s3cret", headers={"Authorization": "Bearer s3cret"})
    assert [line.status for line in lines(access)] == [401, 200]
    assert "s3cret" not in access.text
    assert "guess" not in access.text


def test_probes_are_not_logged_while_they_succeed(serving: Any, access: Any, model: Any) -> None:
    with serving(model) as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/metrics").status_code == 200
    assert lines(access) == []


def test_an_unexpected_failure_has_its_id_in_the_answer_and_in_every_line(
    serving: Any, model: Any, png: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JSONFormatter())
    with serving(model) as client:
        model.provenance = lambda: 1 / 0
        response = post(client, png, ["a"], **{ID: "seven"})
    assert response.status_code == 500
    assert "request id seven" in response.json()["error"]
    said = [json.loads(line) for line in caplog.text.splitlines()]
    (failure,) = [line for line in said if "ZeroDivisionError" in line.get("exception", "")]
    assert failure["id"] == "seven"


def test_a_failure_outside_of_our_routes_is_answered_in_json_with_its_id(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewardzoo.services.gate.Gate._refusal", lambda *_: 1 / 0)
    with serving() as client:
        response = client.get("/v2", headers={ID: "seven"})
    assert response.status_code == 500
    assert response.json() == {"error": "internal error, request id seven: see the server's log"}
    assert response.headers[ID] == "seven"


def make(msg: Any, *args: Any, **more: Any) -> logging.LogRecord:
    return logging.LogRecord(
        "rewardzoo.x", logging.WARNING, "f.py", 1, msg, args, **{"exc_info": None, **more}
    )


def test_a_json_line_is_one_object_with_the_requests_fields() -> None:
    record = RequestRecord("seven", "GET", "/v2", "127.0.0.1:5", status=200, seconds=0.0123456789)
    line = json.loads(JSONFormatter().format(make(record)))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "WARNING",
        "logger": "rewardzoo.x",
        "id": "seven",
        "method": "GET",
        "path": "/v2",
        "remote": "127.0.0.1:5",
        "reward": None,
        "items": None,
        "ok": None,
        "queue_seconds": None,
        "bytes_in": 0,
        "status": 200,
        "seconds": 0.012346,
    }


def test_other_lines_are_objects_too_and_keep_their_traceback_on_one_line() -> None:
    try:
        raise ValueError("line\nbreak")
    except ValueError:
        text = JSONFormatter().format(make("it failed: %s", "a\nb", exc_info=sys.exc_info()))
    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == "it failed: a\nb"
    assert "ValueError: line\nbreak" in line["exception"]
    assert "id" not in line
    assert current_id() is None


def test_text_is_for_reading() -> None:
    record = RequestRecord("seven", "POST", "/score", "127.0.0.1:5", "hpsv2", 3, 2, 0.1, 99, 200, 0.25)
    text = TextFormatter().format(make(record))
    assert text.endswith("127.0.0.1:5 POST /score 200 hpsv2: 2 of 3 items, 99 bytes, 0.250 s [seven]")


@pytest.mark.parametrize(
    ("form", "terminal", "kind"),
    [
        ("json", True, JSONFormatter),
        ("text", False, TextFormatter),
        ("auto", True, TextFormatter),
        ("auto", False, JSONFormatter),
    ],
)
def test_auto_is_text_for_a_terminal_and_json_for_a_machine(
    monkeypatch: pytest.MonkeyPatch, form: Any, terminal: bool, kind: type
) -> None:
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "propagate", True)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger("bentoml"), "handlers", [])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    level = logging.getLogger("rewardzoo").level
    try:
        configure(form)
        assert logging.getLogger("rewardzoo.access").isEnabledFor(logging.INFO)
    finally:
        logging.getLogger("rewardzoo").setLevel(level)
    assert type(handler.formatter) is kind


def test_a_requests_wait_in_the_queue_is_in_its_line(serving: Any, access: Any, png: Any) -> None:
    with serving() as client:
        post(client, png, ["a"])
    (line,) = lines(access)
    assert line.queue_seconds is not None
    assert 0 <= line.queue_seconds <= line.seconds
