"""Nothing of a caller's is ever run, and nothing is fetched for one."""

from __future__ import annotations

import ast
import contextlib
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("rewards", "services", "clients", "trainers", "rewardzoo", "benchmarks")
PEER = ROOT / "benchmarks" / "serving" / "pickle_peer.py"
"""A server as others have it, which the benchmarks run on 127.0.0.1 to measure ours beside it."""
BANNED_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}


def sources() -> list[Path]:
    return sorted(
        path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if not path.is_symlink()
    )


def dangers(tree: ast.AST) -> Iterator[str]:
    """Yield what in a module could run data as code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]]
        else:
            names = []
        yield from (f"imports {name}" for name in names if name in BANNED_MODULES)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in BANNED_CALLS:
            yield f"calls {called}"
        if called == "torch.load" and options.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if called in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False":
            yield "np.load with allow_pickle"
        if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
            yield called
        if options.get("trust_remote_code", "False") != "False":
            yield f"{called} with trust_remote_code"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_source_runs_data_as_code(package: str) -> None:
    paths = [path for path in sources() if path.is_relative_to(ROOT / package) and path != PEER]
    assert paths
    found = {str(path): list(dangers(ast.parse(path.read_text()))) for path in paths}
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import a, dill as d",
        "import torch\ntorch.load(f)",
        "torch.load(f, weights_only=flag)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "eval('1')",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_is_for(code: str) -> None:
    assert list(dangers(ast.parse(code)))


def test_bentomls_pickle_is_refused_and_not_read(serving: Any, tmp_path: Path, monkeypatch: Any) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    bomb = pickle.dumps({"images": [Bomb()], "prompts": ["a"], "reward": "fake:v1"})
    monkeypatch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("a caller's pickle was read"))
    with serving() as client:
        for kind in ("application/vnd.bentoml+pickle", "application/vnd.bentoml+pickle; x=y"):
            for path in ("/score", "/v2/models/fake:v1/infer"):
                headers = {"Content-Type": kind, "Buffer-Lengths": str(len(bomb))}
                response = client.post(path, content=bomb, headers=headers)
                assert response.status_code == (415 if path == "/score" else 400)
    assert not (tmp_path / "ran").exists()


@contextlib.contextmanager
def canary() -> Iterator[tuple[str, list[Any]]]:
    """A port of this machine that notes whoever connects."""
    met: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def listen() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, peer = listening.accept()
                    met.append(peer)
                    connection.close()

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.png", met
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize("kind", ["multipart", "urlencoded", "json", "file of a URL", "tensor of a URL"])
def test_a_url_in_place_of_an_image_is_refused_and_nobody_connects(serving: Any, kind: str) -> None:
    from rewardzoo.clients import wire

    with canary() as (url, met), serving() as client:
        fields = {"images": url, "prompts": '["a"]', "reward": "fake:v1"}
        if kind == "multipart":
            response = client.post("/score", data=fields, files=[("x", b"")])
        elif kind == "urlencoded":
            response = client.post("/score", data=fields)
        elif kind == "json":
            response = client.post("/score", json={**fields, "images": [url], "prompts": ["a"]})
        elif kind == "file of a URL":
            fields.pop("images")
            response = client.post("/score", data=fields, files=[("images", ("a.png", url.encode()))])
        else:
            tensors = {wire.IMAGES: wire.bytes_tensor([url]), wire.PROMPTS: wire.bytes_tensor(["a"])}
            chunks, length = wire.encode({}, tensors, key="inputs")
            headers = {wire.HEADER: str(length)}
            response = client.post("/v2/models/fake:v1/infer", content=b"".join(chunks), headers=headers)
        socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0)).close()
        end = time.monotonic() + 10
        while not met and time.monotonic() < end:
            time.sleep(0.01)
    if kind in ("file of a URL", "tensor of a URL"):
        assert response.status_code == 200
        assert "not an image" in response.text
    else:
        assert response.status_code == 400
    assert len(met) == 1, "the test's own connection, which shows that the canary sees them"
