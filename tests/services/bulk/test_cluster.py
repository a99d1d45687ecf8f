"""Bulk runs through a real Ray of this machine."""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

import numpy as np
import psutil
import pytest
from pyarrow import parquet

from rewardzoo import LocalRewards
from rewardzoo.services.bulk.cluster import Shares, cluster, divide
from tests.services.bulk.pictures import KINDS, pictures, write

NAME = "hpsv2:mini"
BAD = ("bad", b"\x89PNG\r\n\x1a\n broken", "a red circle")


@pytest.mark.parametrize(
    ("cpus", "gpus", "device", "actors", "shares"),
    [
        ([2], [0], "auto", None, Shares(2, 1, 0)),
        ([64], [0], "auto", None, Shares(8, 8, 0)),
        ([64], [0], "cpu", 3, Shares(3, 21, 0)),
        ([16, 16], [4, 4], "auto", None, Shares(8, 4, 1)),
        ([16], [1], "cuda", 2, Shares(2, 8, 0.5)),
        ([16], [2], "cuda", 3, Shares(3, 5, 0.5)),
        ([16], [4], "cpu", None, Shares(8, 2, 0)),
        ([5, 1], [0, 0], "auto", 2, Shares(2, 2, 0)),
    ],
)
def test_machines_are_shared_out_so_that_every_actor_finds_a_place(
    cpus: list[int], gpus: list[int], device: str, actors: int | None, shares: Shares
) -> None:
    assert divide(cpus, gpus, device=device, actors=actors, most=100) == shares


def test_there_are_no_more_actors_than_chunks() -> None:
    assert divide([16], [8], device="auto", actors=None, most=3) == Shares(3, 5, 1)


def test_a_cluster_that_is_too_small_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="9 actors need a CPU each, and the cluster has 8"):
        divide([8], [0], device="auto", actors=9, most=100)
    with pytest.raises(ValueError, match="no GPU"):
        divide([8], [0], device="cuda", actors=None, most=100)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "head", "127.0.0.1:99999"])
def test_what_is_no_address_of_a_cluster_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"Ray (address|cluster)"), cluster(address, None):
        pass


def test_an_address_where_nobody_listens_is_refused_at_once(free_port: Callable[[], int]) -> None:
    with pytest.raises(ValueError, match="no Ray cluster at"), cluster(f"127.0.0.1:{free_port()}", None):
        pass


def start(source: Path, out: Path, *options: str, runs: Sequence[str] = ("-m", "rewardzoo")) -> Popen[str]:
    words = ["bulk", str(source), "--reward", NAME, "--out", str(out), *options]
    return Popen(
        [sys.executable, *runs, *words],
        stdout=PIPE,
        stderr=STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_run_killed_with_its_whole_group_goes_on_and_has_every_row_once(tmp_path: Path) -> None:
    few = pictures(20)
    rows = [(f"r{i}", *few[i % 20][1:]) for i in range(300)]
    rows[123] = BAD
    source = write(tmp_path / "in", "parquet", rows)
    out = tmp_path / "out"
    victim = start(source, out, "--chunk-rows", "10", "--actors", "1")
    while len(list(out.glob("part-*"))) < 3:
        assert victim.poll() is None, victim.communicate()[0]
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.communicate()
    before = {path: path.stat().st_ino for path in out.glob("part-*")}
    assert 3 <= len(before) < 30
    said, _ = (again := start(source, out, "--actors", "1")).communicate(timeout=240)
    assert again.returncode == 0, said
    assert "300 rows" in said
    assert f"without a score: {NAME} 1" in said
    assert {path: path.stat().st_ino for path in before} == before
    found = parquet.read_table(out).to_pylist()
    assert [(row["row"], row["id"]) for row in found] == [(i, key) for i, (key, _, _) in enumerate(rows)]
    assert "damaged" in found[123][f"{NAME}.error"]
    with LocalRewards([NAME], device="cpu") as rewards:
        scores = rewards.score([row[1] for row in few], [row[2] for row in few])
    others = [i for i in range(300) if i != 123]
    np.testing.assert_allclose([found[i][NAME] for i in others], scores[[i % 20 for i in others]], atol=1e-5)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with cluster(None, 2):
        import ray

        yield ray.get_runtime_context().gcs_address


@pytest.mark.slow
def test_a_cluster_by_its_address_scores_every_kind_of_input(address: str, tmp_path: Path) -> None:
    rows = [*pictures(9), BAD]
    for kind in KINDS:
        write(tmp_path / "in", kind, rows)
    # A driver takes 127.0.0.1 for the network's address, where nobody listens to this cluster.
    on_loopback = (
        "from ray._private import ray_constants; ray_constants.ENABLE_RAY_CLUSTER = False;"
        "from rewardzoo.cli import main; main()"
    )
    run = start(
        tmp_path / "in", tmp_path / "out", "--actors", "1", "--ray-address", address, runs=("-c", on_loopback)
    )
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 0, said
    assert f"40 rows in {tmp_path / 'out'}/part-*.parquet; without a score: {NAME} 4" in said.replace(
        "\n", ""
    )
    table = parquet.read_table(tmp_path / "out")
    assert table["file"].to_pylist() == [f"rows.{kind}" for kind in sorted(KINDS) for _ in rows]
    with LocalRewards([NAME], device="cpu") as rewards:
        scores = rewards.score([r[1] for r in rows], [r[2] for r in rows], on_error="nan")
    found = np.array(table[NAME].to_pylist(), dtype=float).reshape(4, 10)
    np.testing.assert_allclose(found, np.tile(scores, (4, 1)), atol=1e-5)


@pytest.mark.slow
def test_ray_of_this_machine_listens_to_this_machine_alone(address: str) -> None:
    assert ipaddress.ip_address(address.rpartition(":")[0]).is_loopback
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 3
    assert all(ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback for ip in listening), listening
