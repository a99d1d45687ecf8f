"""A trained variant is pushed to a stand-in of the hub on this machine, and scores the same from there."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rewardzoo.cli import app
from rewardzoo.errors import WeightsError
from rewardzoo.rewards import load
from rewardzoo.rewards._push import push

from .test_trained import run  # noqa: F401

COMMIT = "c0ffee" + "0" * 34


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as its client needs to commit small files and to download a snapshot."""

    files: dict[str, bytes]
    asked: list[tuple[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        lines = [json.loads(line) for line in body.splitlines() if line]
        self.asked.append((self.path, lines[0] if lines else None))
        answer: dict[str, Any] = {}
        place = f"http://{self.headers['Host']}/someone/my-hps"
        if self.path == "/api/repos/create":
            if lines[0]["organization"] == "nobody":
                self.send_error(403)
                return
            answer = {"url": place}
        elif "/preupload/" in self.path:
            places = [file["path"] for file in lines[0]["files"]]
            answer["files"] = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in places]
        elif "/commit/" in self.path:
            for line in lines[1:]:
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{place}/commit/{COMMIT}", "commitOid": COMMIT}
        self.answer(json.dumps(answer).encode())

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": blob_id(data)}
                for name, data in self.files.items()
            ]
            self.answer(json.dumps(tree).encode())
        elif (data := self.files.get(self.path.partition(f"/resolve/{COMMIT}/")[2])) is not None:
            self.answer(data)
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{blob_id(body)}"')
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    class Fresh(Hub):
        files: dict[str, bytes] = {}  # noqa: RUF012
        asked: list[tuple[str, Any]] = []  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    thread = Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    yield Fresh
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_was_pushed_scores_from_there_as_it_does_here(hub: type[Hub], run: Path) -> None:  # noqa: F811
    for name in ("README.md", "reliability.png", "metrics.json", "config.yaml", "notes.txt"):
        (run / name).write_text("---\nlicense: mit\n---\n" if name == "README.md" else "{}")
    shutil.copytree(run / "model", run / "checkpoints" / "step-000001")
    name = push(f"hpsv2:{run}", "someone/my-hps")
    assert name == f"hpsv2:hf://someone/my-hps@{COMMIT}"
    assert sorted(hub.files) == [
        "README.md",
        "config.yaml",
        "metrics.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "reliability.png",
        "reward.json",
    ]
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    here, there = load(f"hpsv2:{run}"), load(name)
    assert there.score([image], ["a red circle"]) == here.score([image], ["a red circle"])
    assert there.provenance()["weights_sha256"] == here.provenance()["weights_sha256"]


def test_the_command_line_pushes_to_a_private_branch_and_says_how_to_serve_it(
    hub: type[Hub],
    run: Path,  # noqa: F811
) -> None:
    words = ["push", f"hpsv2:{run}", "someone/my-hps", "--private", "--revision", "tries"]
    done = CliRunner().invoke(app, words)
    assert done.stdout.split() == ["rewardzoo", "serve", f"hpsv2:hf://someone/my-hps@{COMMIT}"]
    asked = dict(hub.asked)
    assert asked["/api/repos/create"]["visibility"] == "private"
    assert "/api/models/someone/my-hps/branch/tries" in asked
    assert "/api/models/someone/my-hps/commit/tries" in asked


def test_what_is_no_trained_variant_is_not_pushed(run: Path) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="no folder of a trained variant"):
        push("hpsv2:mini", "someone/my-hps")
    with pytest.raises(ValueError, match="called as a released variant is"):
        push(f"hpsv2:{run}", "someone/mini")
    (run / "model" / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"tokenizer\.json is named by"):
        push(f"hpsv2:{run}", "someone/my-hps")


def test_a_hub_that_refuses_is_an_error_with_the_way_out(hub: type[Hub], run: Path) -> None:  # noqa: F811
    with pytest.raises(WeightsError, match=r"cannot be pushed to nobody/my-hps[\s\S]*hf auth login"):
        push(f"hpsv2:{run}", "nobody/my-hps")
