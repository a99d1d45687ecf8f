"""The real Triton Inference Server, from the wheel of pytriton, and the clients that meet it."""

from __future__ import annotations

import io
import os
import platform
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

import rewardzoo
from rewardzoo.clients import RewardClient, wire
from rewardzoo.errors import NotServedError
from rewardzoo.local import LocalRewards
from rewardzoo.services.triton import Options, export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64" or sys.version_info >= (3, 13),
        reason="the wheel of Triton is for x86-64 Linux and, with NumPy 1, Python up to 3.12",
    ),
]
REWARDS = ["hpsv2:mini", "imagereward:mini"]
# Triton 2.51, whose Python backend was built for NumPy 1.
PACKAGES = ["nvidia-pytriton==0.7.0", "numpy==1.26.4"]
UNREACHABLE = re.compile("NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|name resolution")


@dataclass(frozen=True)
class Triton:
    http: str
    grpc: str

    def url(self, scheme: str) -> str:
        return f"{scheme}://{getattr(self, scheme)}"


@pytest.fixture(scope="module")
def packages() -> Path:
    """A folder with Triton and the NumPy that it needs, made once a machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rewardzoo-tests"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache / f"triton-2.51-python-{version}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as unfinished:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        done = subprocess.run([*command, unfinished, *PACKAGES], capture_output=True, text=True)
        if UNREACHABLE.search(done.stderr):
            pytest.skip("PyPI cannot be reached for nvidia-pytriton")
        assert done.returncode == 0, done.stderr
        server = Path(unfinished) / "pytriton/tritonserver"
        stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
        stub.rename(server / "backends/python/triton_python_backend_stub")
        with suppress(OSError):  # another run was quicker
            Path(unfinished).rename(folder)
    return folder


@pytest.fixture(scope="module")
def python_env(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment for the backend: NumPy 1 before all that these tests run with."""
    folder = tmp_path_factory.mktemp("python") / "env"
    venv.create(folder)
    here, ours = Path(rewardzoo.__file__).resolve().parents[1], sysconfig.get_path("purelib")
    theirs = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (theirs / "rewardzoo.pth").write_text(f"{packages}\n{here}\n{ours}\n")
    return folder


@pytest.fixture(scope="module")
def repository(python_env: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One reward in the Python on the server's PATH, with patience; one in an environment of its own."""
    folder = tmp_path_factory.mktemp("repository")
    export(REWARDS[:1], folder, Options(device="cpu", delay_us=300_000))
    export(REWARDS[1:], folder, Options(max_batch=8, python_env=python_env))
    return folder


@pytest.fixture(scope="module")
def triton(
    packages: Path,
    python_env: Path,
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
) -> Iterator[Triton]:
    folder = tmp_path_factory.mktemp("triton")
    found = Triton(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    options = {
        "model-repository": repository,
        "backend-directory": packages / "pytriton/tritonserver/backends",
        "http-address": "127.0.0.1",
        "http-port": found.http.split(":")[1],
        "grpc-address": "127.0.0.1",
        "grpc-port": found.grpc.split(":")[1],
        "allow-metrics": "false",
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{python_env / 'bin'}:{environment['PATH']}"
    environment["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    binary = packages / "pytriton/tritonserver/bin/tritonserver"
    command = [str(binary), "--disable-auto-complete-config"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        with RewardClient(found.url("http")) as client:
            end = time.monotonic() + 60
            while not client.ready():
                tail = (folder / "log").read_text(errors="replace")[-4000:]
                assert server.poll() is None, tail
                assert time.monotonic() < end, tail
                time.sleep(0.1)
        yield found
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def local() -> LocalRewards:
    return LocalRewards(REWARDS, device="cpu")


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.uint8] | bytes]:
    """Pixels of three sizes and files, 20 in all."""
    noise = np.random.default_rng(0)
    pixels = [noise.integers(0, 256, (32 + 16 * (i % 3), 48, 3), dtype=np.uint8) for i in range(15)]
    return [*pixels, *(png(p) for p in pixels[:5])]


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


COLORS = ["red", "blue", "grey", "ä", "円"]
PROMPTS = [f"{n} {color} circles" for n in ("two", "three", "four", "five") for color in COLORS]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("reward", REWARDS)
def test_scores_are_those_of_the_model_in_this_process(
    triton: Triton, local: LocalRewards, images: list[Any], scheme: str, reward: str
) -> None:
    expected = local.score_result(images, PROMPTS, reward=reward)
    with RewardClient(triton.url(scheme)) as client:
        result = client.score_result(images, PROMPTS, reward=reward)
    assert_array_equal(result.scores, expected.scores)
    assert result.provenance == expected.provenance
    assert not result.errors


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_requests_of_several_sizes_are_merged_into_one_batch(
    triton: Triton, local: LocalRewards, images: list[Any], scheme: str
) -> None:
    client_of = pytest.importorskip("tritonclient.grpc").InferenceServerClient
    with client_of(triton.grpc) as statistics, RewardClient(triton.url(scheme)) as client:

        def counts() -> tuple[int, int]:
            time.sleep(0.3)  # Triton counts a request after it has answered it
            (found,) = statistics.get_inference_statistics("hpsv2.mini").model_stats
            return found.inference_count, found.execution_count

        def score(i: int) -> float:
            return float(client.score([images[i]], PROMPTS[i], reward="hpsv2:mini")[0])

        before = counts()
        with ThreadPoolExecutor(15) as pool:
            scores = list(pool.map(score, range(15)))
        after = counts()
    items, batches = after[0] - before[0], after[1] - before[1]
    assert items == 15
    assert batches < 8
    np.testing.assert_allclose(
        scores, local.score(images[:15], PROMPTS[:15], reward="hpsv2:mini"), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_an_item_that_cannot_be_scored_fails_alone(
    triton: Triton, local: LocalRewards, images: list[Any], scheme: str
) -> None:
    good = images[15:]
    broken = good[0][:60]
    with RewardClient(triton.url(scheme)) as client:
        expected = client.score(good, PROMPTS[:5], reward="hpsv2:mini")
        result = client.score_result([*good, broken], [*PROMPTS[:5], "a cat"], reward="hpsv2:mini")
    assert_array_equal(result.scores[:5], expected)
    assert list(result.errors) == [5]
    assert "truncated or damaged PNG" in str(result.errors[5])


def test_the_plain_clients_get_the_same_scores_and_errors(
    triton: Triton, local: LocalRewards, images: list[Any]
) -> None:
    pixels = np.stack(images[0:15:3])
    prompts = [text.encode() for text in PROMPTS[:5]]
    prompts[3] = b"\xff\xfe"
    notes = [b"{}", b"", b"[]", b"", b'{"step": 1}']
    expected = local.score(list(pixels), PROMPTS[:5], reward="imagereward:mini")
    expected[[2, 3]] = np.nan
    for module, address in (("http", triton.http), ("grpc", triton.grpc)):
        tritonclient = pytest.importorskip(f"tritonclient.{module}")
        inputs = []
        for name, tensor in {
            "images": pixels,
            "prompts": wire.bytes_tensor(prompts)[:, None],
            "metadata": wire.bytes_tensor(notes)[:, None],
        }.items():
            datatype = "UINT8" if name == "images" else "BYTES"
            inputs.append(tritonclient.InferInput(name, list(tensor.shape), datatype))
            inputs[-1].set_data_from_numpy(tensor)
        with tritonclient.InferenceServerClient(address) as client:
            answer = client.infer("imagereward.mini", inputs)
        np.testing.assert_allclose(answer.as_numpy("scores")[:, 0], expected, rtol=0, atol=1e-5)
        errors = [text.decode() for text in answer.as_numpy("errors")[:, 0]]
        assert [bool(error) for error in errors] == [False, False, True, True, False]
        assert "the metadata must be a JSON object" in errors[2]
        assert "the prompt is not UTF-8" in errors[3]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_the_server_says_what_it_hosts(triton: Triton, local: LocalRewards, scheme: str) -> None:
    with RewardClient(triton.url(scheme)) as client:
        assert client.ready()
        found = {reward.name: reward for reward in client.rewards()}
        with pytest.raises(NotServedError, match="unknown model: 'none"):
            client.score([np.zeros((8, 8, 3), np.uint8)], "a", reward="none:v1")
    assert set(found) == set(REWARDS)
    assert all(reward.ready for reward in found.values())
    assert found["hpsv2:mini"].provenance["weights_license"] == "Apache-2.0"
