"""A real BentoML server with the minis, as users meet it: every way in gives the same scores."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from rewardzoo import ItemsFailedError, LocalRewards, RewardClient
from rewardzoo.errors import NotServedError, UnknownRewardError
from rewardzoo.trainers.lab import triples

pytestmark = pytest.mark.slow
REWARDS = ("hpsv2:mini", "imagereward:mini")


def start_server(port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rewardzoo", "serve", *REWARDS, "--port", str(port), "--device", "cpu"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(server: subprocess.Popen[bytes]) -> None:
    # BentoML's workers are in sessions of their own: they outlive a killed group, and keep the port.
    workers = psutil.Process(server.pid).children(recursive=True)
    server.kill()
    server.wait()
    for worker in workers:
        worker.kill()
    psutil.wait_procs(workers, timeout=30)


@pytest.fixture(scope="module")
def port(free_port: Callable[[], int]) -> int:
    return free_port()


@pytest.fixture(scope="module")
def url(port: int) -> Iterator[str]:
    server = start_server(port)
    try:
        url = f"http://127.0.0.1:{port}"
        with RewardClient(url) as client:
            client.wait_ready(120)
        yield url
    finally:
        kill(server)


@pytest.fixture(scope="module")
def local() -> LocalRewards:
    return LocalRewards(REWARDS, device="cpu")


@pytest.fixture(scope="module")
def pairs() -> tuple[list[np.ndarray], list[str]]:
    found = list(triples(32, seed=5))
    return [im for t in found for im in (t.right, t.wrong)], [t.prompt for t in found for _ in range(2)]


@pytest.mark.parametrize("reward", REWARDS)
def test_tritonclient_reward_client_and_local_rewards_agree_to_the_bit(
    url, local, pairs, reward: str
) -> None:
    from tritonclient import http as triton

    images, prompts = pairs
    with RewardClient(url) as client:
        served = client.score(images, prompts, reward=reward)
    inputs = [
        triton.InferInput("images", [64, 64, 64, 3], "UINT8"),
        triton.InferInput("prompts", [64], "BYTES"),
    ]
    inputs[0].set_data_from_numpy(np.stack(images))
    inputs[1].set_data_from_numpy(np.array([p.encode() for p in prompts], dtype=object))
    with triton.InferenceServerClient(url.removeprefix("http://")) as other:
        answer = other.infer(reward, inputs)
    np.testing.assert_array_equal(answer.as_numpy("scores"), served)
    assert set(answer.as_numpy("details")) <= {b"", ""}, "these rewards have nothing to say"
    np.testing.assert_array_equal(local.score(images, prompts, reward=reward), served)
    assert len(np.unique(served)) > 60


@pytest.mark.parametrize("reward", REWARDS)
def test_a_score_alone_among_strangers_and_reversed_agrees_within_1e_5(url, pairs, reward: str) -> None:
    images, prompts = pairs
    with RewardClient(url) as client:
        among = client.score(images, prompts, reward=reward)
        alone = [client.score([im], [p], reward=reward)[0] for im, p in zip(images, prompts, strict=True)]
        back = client.score(images[::-1], prompts[::-1], reward=reward)[::-1]
    np.testing.assert_allclose(alone, among, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(back, among, atol=1e-5, rtol=1e-5)


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def noise_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_images_downscaled_by_the_client_score_as_those_that_the_server_resizes(url) -> None:
    rng = np.random.default_rng(0)
    shapes = [(300, 200), (200, 300), (67, 64), (64, 67), (512, 512), (64, 64), (30, 400)]
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    whole, small = RewardClient(url), RewardClient(url, downscale=True)
    for reward in (*REWARDS, list(REWARDS)):
        expected = whole.score_result(images, "a red circle", reward=reward)
        found = small.score_result(images, "a red circle", reward=reward)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6, rtol=1e-6)
        # HPS v2 resizes floats: there is no step that would leave its scores alone.
        assert ("downscale" in found.provenance) == (reward == "imagereward:mini")
        assert "downscale" not in expected.provenance
    assert len(set(expected.scores[:, 1].tolist())) == len(images)


BAD = {
    "truncated PNG": (noise_png()[:4000], "a", "truncated or damaged"),
    "no pixels": (np.zeros((0, 0, 3), np.uint8), "a", "empty: 0x0 pixels"),
    "decompression bomb": (png(20_000, 20_000), "a", "400,?000,?000 pixels"),
    "NaN": (np.full((8, 8, 3), np.nan, np.float32), "a", "192 of 192 pixel values are NaN"),
    "wrong dtype": (np.zeros((8, 8, 3), np.int64), "a", "int64"),
    "empty prompt": (np.zeros((8, 8, 3), np.uint8), "", "empty"),
    "100 kB prompt": (np.zeros((8, 8, 3), np.uint8), "x" * 100_000, "100,?000"),
}


@pytest.mark.parametrize("where", ["server", "here"])
def test_each_bad_item_has_its_own_error_and_the_others_are_scored(url, local, pairs, where: str) -> None:
    images, prompts = pairs
    scorer = RewardClient(url) if where == "server" else local
    mixed = [images[0], *(bad[0] for bad in BAD.values()), images[1]]
    texts = [prompts[0], *(bad[1] for bad in BAD.values()), prompts[1]]
    with pytest.raises(ItemsFailedError) as caught:
        scorer.score(mixed, texts, reward="hpsv2:mini")
    errors, scores = caught.value.errors, caught.value.result.scores
    assert sorted(errors) == list(range(1, 1 + len(BAD)))
    for error, (_, _, expected) in zip(errors.values(), BAD.values(), strict=True):
        with pytest.raises(type(error), match=expected):
            raise error
    good = local.score(images[:2], prompts[:2], reward="hpsv2:mini")
    np.testing.assert_allclose(scores[[0, -1]], good, atol=1e-5)
    assert np.isnan(scores[1:-1]).all()


def test_an_unknown_reward_is_refused_with_those_there_are(url, local, pairs) -> None:
    images, prompts = pairs
    with RewardClient(url) as client, pytest.raises(NotServedError, match="hpsv2:mini, imagereward:mini"):
        client.score(images[:1], prompts[:1], reward="pickscore:v9")
    with pytest.raises(UnknownRewardError, match="hpsv2:mini, imagereward:mini"):
        local.score(images[:1], prompts[:1], reward="pickscore:v9")


def test_curl_scores_files(url, local, pairs, tmp_path: Path) -> None:
    import json

    images, prompts = pairs
    for i in (0, 1):
        Image.fromarray(images[i]).save(tmp_path / f"{i}.png")
    command = ["curl", "-sS", "-F", f"images=@{tmp_path}/0.png", "-F", f"images=@{tmp_path}/1.png"]
    command += ["-F", f"prompts={json.dumps(prompts[:2])}", "-F", "reward=hpsv2:mini", f"{url}/score"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    np.testing.assert_array_equal(
        np.float32(answer["scores"]), local.score(images[:2], prompts[:2], reward="hpsv2:mini")
    )


def test_a_server_killed_and_restarted_during_a_call_loses_and_repeats_nothing(
    local, pairs, free_port
) -> None:
    port = free_port()
    images, prompts = ([*part * 32][:2000] for part in pairs)
    rng = np.random.default_rng(0)
    order = rng.permutation(2000)
    images, prompts = [images[i] for i in order], [prompts[i] for i in order]
    servers = [start_server(port)]
    killed_at = threading.Event()

    def strike() -> None:
        time.sleep(1.0)
        kill(servers[-1])
        killed_at.set()
        time.sleep(1.0)
        servers.append(start_server(port))

    try:
        with RewardClient(f"http://127.0.0.1:{port}") as client:
            client.wait_ready(120)
            striker = threading.Thread(target=strike)
            striker.start()
            scores = client.score(images, prompts, reward="imagereward:mini")
            assert killed_at.is_set(), "the call ended before the server was killed: nothing was shown"
            striker.join()
    finally:
        for server in servers:
            if server.poll() is None:
                kill(server)
    expected = local.score(images, prompts, reward="imagereward:mini")
    np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=1e-5)
