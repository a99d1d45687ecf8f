"""deploy/nginx.conf and deploy/haproxy.cfg, as their programs run them, before two real servers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
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


@pytest.mark.slow
def test_scores_come_through_both_balancers_while_one_server_is_killed_and_the_other_restarted(
    tmp_path: Path, free_port, start, start_server, wait_ready, pairs
) -> None:
    at = [free_port(), free_port()]
    urls = []
    for command, check in ((nginx, "-t"), (haproxy, "-c")):
        port = free_port()
        line = command(tmp_path, [port, *at])
        checked = start([*line, check])
        assert checked.popen.wait(timeout=20) == 0, checked.log.read_text()
        balancer = start(line)
        urls.append((f"http://127.0.0.1:{port}", balancer))
    servers = [start_server(port) for port in at]
    for port, server in zip(at, servers, strict=True):
        wait_ready(f"http://127.0.0.1:{port}", server)
    images, prompts = (part * 16 for part in pairs)
    expected = LocalRewards([REWARD], device="cpu").score(images, prompts)

    def score(client: RewardClient, until: Callable[[], bool] = lambda: True) -> None:
        while True:
            over = until()
            np.testing.assert_allclose(client.score(images, prompts, reward=REWARD), expected, atol=1e-5)
            if over:
                return
            time.sleep(0.2)  # leaves the processor to a server that starts

    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor())
        clients = [stack.enter_context(RewardClient(url)) for url, _ in urls]

        def score_through_both(meanwhile: Callable[[], object]) -> None:
            """Score again and again, and once more when `meanwhile` is done."""
            done = threads.submit(lambda: (time.sleep(0.3), meanwhile()))
            for scored in [threads.submit(score, client, done.done) for client in clients]:
                scored.result()
            done.result()

        for client, (url, balancer) in zip(clients, urls, strict=True):
            wait_ready(url, balancer)
            before = [server.log.read_text().count("/infer") for server in servers]
            score(client)
            after = [server.log.read_text().count("/infer") for server in servers]
            assert min(np.subtract(after, before)) >= 1, f"one server answered everything: {before} {after}"
        score_through_both(lambda: servers[0].end(signal.SIGKILL))
        # An upgrade: the one that was gone is back, then the other goes, in peace.
        servers[0] = start_server(at[0])
        score_through_both(lambda: wait_ready(f"http://127.0.0.1:{at[0]}", servers[0]))
        score_through_both(lambda: servers[1].end(signal.SIGTERM))
        assert servers[0].log.read_text().count("/infer") > 0
    for url, balancer in urls:
        assert httpx.get(f"{url}/v2/health/ready").status_code == 200
        assert httpx.get(f"{url}/metrics").status_code == 404
        assert balancer.popen.poll() is None, balancer.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("command", [nginx, haproxy])
def test_without_a_server_the_answer_is_prompt_and_may_be_repeated(
    command: Command, tmp_path: Path, free_port, start
) -> None:
    ports = [free_port() for _ in range(3)]
    balancer = start(command(tmp_path, ports))
    url = f"http://127.0.0.1:{ports[0]}"
    with httpx.Client(transport=httpx.HTTPTransport(retries=5)) as client:
        answer = client.get(f"{url}/v2/health/ready", timeout=5)
    assert answer.status_code in (502, 503), balancer.log.read_text()
