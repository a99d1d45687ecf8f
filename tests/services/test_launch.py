"""Real BentoML servers, and the public clients that meet them."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from pydantic import SecretStr

from rewardzoo.errors import UnknownRewardError
from rewardzoo.services import ServeConfig, launch
from rewardzoo.services.launch import running, serve

REWARD = "hpsv2:mini"
needs_mini = pytest.mark.skipif(
    not (files("rewardzoo.rewards") / "minis/hpsv2/model.safetensors").is_file(),
    reason="the weights of hpsv2:mini are not in this checkout",
)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
PROMPTS = ["a red circle", "a blue square", "a red circle", "two green circles", "a cat"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(ServeConfig(rewards=[REWARD], device="cpu", token=SecretStr("secret"))) as url:
        yield url


@pytest.fixture(scope="module")
def expected() -> list[float]:
    from rewardzoo.rewards import load

    return load(REWARD, device="cpu").score(list(IMAGES), PROMPTS)


@pytest.mark.slow
@needs_mini
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritons_own_client_gets_the_very_scores_of_the_model(
    url: str,
    expected: list[float],
    binary_in: bool,
    binary_out: bool | None,
    compression: str | None,
) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    headers = {"Authorization": "Bearer secret"}
    inputs = [
        triton.InferInput("images", list(IMAGES.shape), "UINT8"),
        triton.InferInput("prompts", [len(PROMPTS), 1], "BYTES"),
    ]
    inputs[0].set_data_from_numpy(IMAGES, binary_data=binary_in)
    texts = np.array([[prompt.encode()] for prompt in PROMPTS], dtype=np.object_)
    inputs[1].set_data_from_numpy(texts, binary_data=binary_in)
    outputs = binary_out is not None and [
        triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("scores", "errors")
    ]
    result = client.infer(
        REWARD,
        inputs,
        outputs=outputs or None,
        headers=headers,
        request_compression_algorithm=compression,
    )
    client.close()
    assert result.as_numpy("scores").tolist() == expected
    assert set(result.as_numpy("errors")) <= {b"", ""}


@pytest.mark.slow
@needs_mini
def test_tritons_own_client_understands_health_metadata_index_and_errors(url: str) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    headers = {"Authorization": "Bearer secret"}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(REWARD, headers=headers)
    assert client.get_server_metadata(headers=headers)["name"] == "rewardzoo"
    assert client.get_model_metadata(REWARD, headers=headers)["name"] == REWARD
    (entry,) = client.get_model_repository_index(headers=headers)
    assert entry["name"] == REWARD
    with pytest.raises(Exception, match="is not served here"):
        client.get_model_metadata("nope", headers=headers)
    with pytest.raises(Exception, match="no valid token"):
        client.get_server_metadata()
    client.close()


@pytest.mark.slow
@needs_mini
def test_bentomls_own_client_gets_the_same_scores(url: str, expected: list[float], tmp_path: Path) -> None:
    paths = _files(tmp_path)
    with bentoml.SyncHTTPClient(url, token="secret") as client:
        reply: Any = client.score(images=paths, prompts=PROMPTS, reward=REWARD)
        notes = [{"step": i} for i in range(5)]
        told: Any = client.score(images=paths, prompts=PROMPTS, reward=REWARD, metadata=notes)
    assert reply["scores"] == told["scores"] == expected
    assert reply["details"] == [{}] * 5


@pytest.mark.slow
@needs_mini
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_gets_the_same_scores_and_a_truncated_file_fails_alone(
    url: str, expected: list[float], tmp_path: Path
) -> None:
    paths = _files(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-200])
    images = [part for path in paths for part in ("-F", f"images=@{path}")]
    fields = ["-F", f"prompts={json.dumps(PROMPTS)}", "-F", f"reward={REWARD}"]
    token = ["-H", "Authorization: Bearer secret"]
    command = ["curl", "-s", "--noproxy", "*", *token, *images, *fields, f"{url}/score"]
    reply = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert reply["scores"][1] is None
    # One item fewer in the batch: equal to a rounding, not to the bit.
    assert [reply["scores"][i] for i in (0, 2, 3, 4)] == pytest.approx(
        [expected[i] for i in (0, 2, 3, 4)], abs=1e-5
    )
    assert list(reply["errors"]) == ["1"]


@pytest.mark.slow
@needs_mini
def test_metrics_are_there_for_who_has_the_token(url: str) -> None:
    assert httpx.get(f"{url}/metrics").status_code == 401
    metrics = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer secret"})
    assert "rewardzoo_requests_total" in metrics.text


@pytest.mark.slow
def test_a_server_that_cannot_load_its_weights_ends_and_says_why(tmp_path: Path) -> None:
    config = ServeConfig(rewards=[REWARD], weights={REWARD: tmp_path / "nowhere"})
    with pytest.raises(RuntimeError, match=r"nowhere.*no such file"), running(config):
        pytest.fail("it was never ready")


def test_an_unknown_reward_is_refused_before_anything_starts() -> None:
    with pytest.raises(UnknownRewardError, match="hpsv9"), running(ServeConfig(rewards=["hpsv9"])):
        pytest.fail("there is no such reward")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_host_open_to_others_needs_a_token(host: str) -> None:
    with pytest.raises(ValueError, match="REWARDZOO_TOKEN"):
        serve(ServeConfig(rewards=[REWARD]), host)


def test_the_token_is_not_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("os.execve", lambda *call: started.append(call))
    serve(ServeConfig(rewards=[REWARD], token=SecretStr("secret")), "0.0.0.0", 3210)
    ((path, command, environment),) = started
    assert path == sys.executable
    assert command[-4:] == ["--host", "0.0.0.0", "--port", "3210"]
    assert not any("secret" in part for part in command)
    assert environment["REWARDZOO_TOKEN"] == "secret"


def test_an_unset_token_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDZOO_TOKEN", "other")
    started: list[Any] = []
    monkeypatch.setattr("os.execve", lambda *call: started.append(call))
    serve(ServeConfig(rewards=[REWARD], token=None))
    assert "REWARDZOO_TOKEN" not in started[0][2]


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) < 3:
    subprocess.Popen([sys.executable, __file__, sys.argv[1], "worker"], start_new_session=True)
else:
    open(sys.argv[1], "w").close()
time.sleep(60)
"""


def test_what_does_not_end_by_itself_is_killed_with_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_PATIENCE", 0.2)
    script, started = tmp_path / "stubborn.py", tmp_path / "started"
    script.write_text(STUBBORN)
    server = subprocess.Popen([sys.executable, script, started], start_new_session=True)
    end = time.monotonic() + 30
    while not started.exists() and time.monotonic() < end:
        time.sleep(0.02)
    (worker,) = psutil.Process(server.pid).children()
    launch._stop(server)
    assert server.returncode == -9
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def _files(folder: Path) -> list[Path]:
    paths = [folder / f"{i}.png" for i in range(len(IMAGES))]
    for path, pixels in zip(paths, IMAGES, strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        path.write_bytes(file.getvalue())
    return paths
