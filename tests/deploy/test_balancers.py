"""deploy/nginx.conf and deploy/haproxy.cfg, as their programs run them, before two real servers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from rewardzoo import LocalRewards, RewardClient

ROOT = Path(__file__).parents[2]
REWARD = "hpsv2:mini"


def program(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    return path or pytest.skip(f"{name} is not installed: apt-get install {name}")


def with_ports(text: str, ports: Sequence[int]) -> str:
    """The example with this test's ports: its own, and those of two servers."""
    assert [text.count(f" 127.0.0.1:{example}") for example in (3000, 3001)] == [1, 1]
    text = re.sub(r"(?m)^(\s+(?:listen|bind) ):?8080", rf"\g<1>127.0.0.1:{ports[0]}", text)
    return text.replace("127.0.0.1:3000", f"127.0.0.1:{ports[1]}").replace(
        "127.0.0.1:3001", f"127.0.0.1:{ports[2]}"
    )


def nginx(folder: Path, ports: Sequence[int]) -> list[str]:
    """What Debian's nginx.conf has around conf.d/*.conf, and a folder for what nginx writes."""
    (folder / "rewardzoo.conf").write_text(with_ports((ROOT / "deploy" / "nginx.conf").read_text(), ports))
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"worker_processes 2;\npid {folder}/pid;\ndaemon off;\nerror_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}include {folder}/rewardzoo.conf;\n}}\n"
    )
    # Without -e nginx tries its built-in log first, which not every user may write.
    return [program("nginx"), "-e", "stderr", "-c", str(main)]


def haproxy(folder: Path, ports: Sequence[int]) -> list[str]:
    config = folder / "haproxy.cfg"
    config.write_text(with_ports((ROOT / "deploy" / "haproxy.cfg").read_text(), ports))
    return [program("haproxy"), "-db", "-f", str(config)]


Command = Callable[[Path, Sequence[int]], list[str]]
BALANCERS = {"nginx": (nginx, "-t"), "haproxy": (haproxy, "-c")}


@pytest.mark.slow
@pytest.mark.parametrize(("command", "check"), BALANCERS.values(), ids=BALANCERS)
def test_scores_come_through_from_both_servers_and_still_when_one_is_killed(
    command: Command, check: str, tmp_path: Path, free_port, start, start_server, wait_ready, pairs
) -> None:
    ports = [free_port() for _ in range(3)]
    line = command(tmp_path, ports)
    checked = start([*line, check])
    assert checked.popen.wait(timeout=20) == 0, checked.log.read_text()
    servers = [start_server(port) for port in ports[1:]]
    for port, server in zip(ports[1:], servers, strict=True):
        wait_ready(f"http://127.0.0.1:{port}", server)
    balancer = start(line)
    url = f"http://127.0.0.1:{ports[0]}"
    wait_ready(url, balancer)
    images, prompts = pairs
    images, prompts = images * 32, prompts * 32
    expected = LocalRewards([REWARD], device="cpu").score(images, prompts)

    with RewardClient(url) as client:
        np.testing.assert_allclose(client.score(images, prompts, reward=REWARD), expected, atol=1e-5)
        asked = [server.log.read_text().count("/infer") for server in servers]
        assert min(asked) >= 2, f"one server answered everything: {asked}"

        # While scores are on their way, not before: what is lost with the server must be sent again.
        killer = threading.Timer(0.3, servers[0].end, [signal.SIGKILL])
        killer.start()
        for _ in range(3):
            np.testing.assert_allclose(client.score(images, prompts, reward=REWARD), expected, atol=1e-5)
        killer.join()
        assert servers[0].popen.poll() is not None
        np.testing.assert_allclose(client.score(images, prompts, reward=REWARD), expected, atol=1e-5)
    assert httpx.get(f"{url}/v2/health/ready").status_code == 200
    assert httpx.get(f"{url}/metrics").status_code == 404
    # Read by the balancers alone, whatever the servers would take.
    assert balancer.popen.poll() is None, balancer.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("command", [nginx, haproxy])
def test_without_a_server_the_answer_is_prompt_and_may_be_repeated(
    command: Command, tmp_path: Path, free_port, start, wait_ready
) -> None:
    ports = [free_port() for _ in range(3)]
    balancer = start(command(tmp_path, ports))
    url = f"http://127.0.0.1:{ports[0]}"
    with httpx.Client(transport=httpx.HTTPTransport(retries=5)) as client:
        answer = client.get(f"{url}/v2/health/ready", timeout=5)
    assert answer.status_code in (502, 503), balancer.log.read_text()
