from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from rewardzoo.errors import MissingExtraError
from rewardzoo.services import front

needs_gradio = pytest.mark.skipif(
    find_spec("gradio") is None, reason="the page needs Gradio: pip install 'rewardzoo[ui]'"
)
BENTOML = "BentoML Prediction Service"
JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"


@pytest.fixture(autouse=True)
def temporary_files_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Gradio keeps the folder of its import, which the next page in this process would bring back.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def no_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rewardzoo.services.front", "rewardzoo.errors"):
        monkeypatch.setattr(f"{module}.find_spec", lambda _: None)


def test_without_the_extra_bentomls_page_stays_and_the_log_names_the_extra(
    serving: Any, no_gradio: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger=front.logger.name), serving(ui="auto") as client:
        assert BENTOML in client.get("/").text
        assert client.get(front.QUEUES).status_code == 404
    assert "rewardzoo[ui]" in caplog.text


def test_wanting_the_page_without_the_extra_ends_the_start(make_app: Any, no_gradio: None) -> None:
    with pytest.raises(MissingExtraError, match=r"rewardzoo\[ui\]"), TestClient(make_app(ui="on")):
        pass


def test_switched_off_there_is_no_page_but_both_places_of_the_documentation(serving: Any) -> None:
    with serving(ui="off") as client:
        assert BENTOML in client.get("/").text
        assert BENTOML in client.get("/docs").text
        assert client.post(JOIN, json={}).status_code == 404
        assert client.get("/theme.css").status_code == 404


@pytest.mark.parametrize(
    ("option", "expected"), [([], "off"), (["--ui"], "on"), (["--no-ui"], "off")], ids=["none", "ui", "no ui"]
)
def test_the_option_of_the_command_comes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, option: list[str], expected: str
) -> None:
    from typer.testing import CliRunner

    from rewardzoo.cli import app

    monkeypatch.setenv("REWARDZOO_UI", "off")
    started: list[Any] = []
    monkeypatch.setattr("os.execve", lambda *call: started.append(call))
    assert CliRunner().invoke(app, ["serve", "hpsv2:mini", *option]).exit_code == 0
    assert started[0][2]["REWARDZOO_UI"] == expected


def test_no_page_may_load_from_elsewhere(serving: Any) -> None:
    with serving() as client:
        for path in ("/", "/docs"):
            policy = client.get(path).headers["Content-Security-Policy"]
            assert "default-src 'self'" in policy
            assert "http" not in policy


@pytest.mark.parametrize("path", ["/", "/docs", "/docs.json", "/schema.json", "/static_content/index.css"])
def test_a_browser_may_send_the_token_as_a_password_where_it_reads(serving: Any, path: str) -> None:
    with serving(token="s:e") as client:
        asked = client.get(path)
        assert asked.status_code == 401
        assert asked.headers["WWW-Authenticate"].startswith("Basic ")
        assert client.get(path, auth=("anyone", "s:e")).status_code == 200
        assert client.get(path, auth=("s:e", "")).status_code == 401
        assert client.get(path, headers={"Authorization": "Basic ="}).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer s:e"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v2"), ("POST", "/score"), ("POST", "/"), ("GET", "/metrics")]
)
def test_the_api_takes_no_password(serving: Any, method: str, path: str) -> None:
    with serving(token="secret") as client:
        answer = client.request(method, path, auth=("anyone", "secret"))
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.fixture(scope="module")
def picture() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def page(serving: Any) -> Iterator[TestClient]:
    with serving(ui="auto", token="secret", max_body_mb=1) as client:
        client.auth = ("browser", "secret")
        yield client


def say(client: TestClient, files: list[dict[str, Any]], prompt: str = "a cat") -> dict[str, Any]:
    """Press the page's button, as its script does; returns the queue's last word."""
    config = json.loads(
        client.get("/").text.partition("window.gradio_config = ")[2].partition(";</script>")[0]
    )
    (button,) = (d for d in config["dependencies"] if len(d["inputs"]) == 3)
    ask = {"data": [files, prompt, ["fake:v1"]], "fn_index": button["id"], "session_hash": "test"}
    assert client.post(JOIN, json=ask).status_code == 200
    events = client.get("/gradio_api/queue/data", params={"session_hash": "test"}).text
    said = [json.loads(line.removeprefix("data: ")) for line in events.split("\n\n") if line]
    (last,) = (message for message in said if message["msg"] == "process_completed")
    found: dict[str, Any] = last
    return found


def as_file(path: str) -> dict[str, Any]:
    return {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}


@needs_gradio
def test_the_page_scores_what_is_uploaded_and_the_api_stays(page: TestClient, picture: bytes) -> None:
    assert "window.gradio_config" in page.get("/").text
    assert BENTOML in page.get("/docs").text
    assert (
        page.get("/v2", headers={"Authorization": "Bearer secret"}, auth=None).json()["name"] == "rewardzoo"
    )
    (path,) = page.post(UPLOAD, files={"files": ("a.png", picture)}).json()
    said = say(page, [as_file(path)])
    assert said["success"]
    assert 'data-name="a.png"' in said["output"]["data"][0]
    assert "0.3333" in said["output"]["data"][0]
    assert page.get(front.QUEUES).json() == [{"name": "fake:v1", "waiting": 0, "scored": 1, "ready": True}]


@needs_gradio
def test_the_page_opens_no_file_of_the_server(page: TestClient, tmp_path: Path, picture: bytes) -> None:
    (tmp_path / "secret.png").write_bytes(picture)
    said = say(page, [as_file(str(tmp_path / "secret.png"))])
    assert not said["success"]
    assert "data-name" not in json.dumps(said)


@needs_gradio
def test_the_page_fetches_no_url(page: TestClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        for file in (as_file(url), {**as_file(url), "url": url}):
            said = say(page, [file])
            assert not said["success"]
            assert "must be uploaded" in json.dumps(said)
        with pytest.raises(TimeoutError):
            listener.accept()


@needs_gradio
@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/hostname",
        "/gradio_api/file/etc/hostname",
        "/gradio_api/proxy=https://example.com/",
        "/gradio_api/info",
        "/gradio_api/heartbeat/x",
        "/gradio_api/vibe-code",
        "/gradio_api/startup-events",
        "/config",
        "/monitoring",
        "/login",
    ],
)
def test_what_the_page_does_not_need_of_gradio_is_not_there(page: TestClient, path: str) -> None:
    bearer = {"Authorization": "Bearer secret"}
    assert page.get(path, headers=bearer, auth=None).status_code == 404
    assert page.post(path, headers=bearer, auth=None).status_code == 404


@needs_gradio
@pytest.mark.parametrize("path", ["/static/..%2f..%2froutes.py", "/assets/%2e%2e/%2e%2e/routes.py"])
def test_assets_lead_to_no_other_file(page: TestClient, path: str) -> None:
    assert page.get(path).status_code in (403, 404)


@needs_gradio
def test_an_upload_over_the_limit_is_refused(page: TestClient) -> None:
    answer = page.post(UPLOAD, files={"files": ("a.png", bytes(2**20 + 1))})
    assert answer.status_code == 413
    assert "the limit is 1,048,576" in answer.text
    assert page.post(UPLOAD, content=iter([b"no length"])).status_code == 411


@needs_gradio
def test_uploads_may_not_fill_the_disk(page: TestClient) -> None:
    sent = [
        page.post(UPLOAD, files={"files": (f"{i}.png", bytes([i]) * 900_000)}).status_code for i in range(10)
    ]
    assert sent[:8] == [200] * 8
    assert sent[-1] == 503


@needs_gradio
def test_another_site_cannot_use_the_browsers_password(page: TestClient) -> None:
    for site in ("cross-site", "same-site"):
        assert page.post(JOIN, json={}, headers={"Sec-Fetch-Site": site}).status_code == 403
    assert page.post(JOIN, json={}, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 422


@needs_gradio
def test_uploads_are_gone_when_the_server_is(serving: Any, picture: bytes) -> None:
    with serving(ui="on") as client:
        (path,) = client.post(UPLOAD, files={"files": ("a.png", picture)}).json()
        assert Path(path).read_bytes() == picture
    assert not Path(path).exists()
