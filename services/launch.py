"""Starting a real BentoML server: in the foreground, or for the length of a `with` block."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

import rewardzoo
from rewardzoo.services.config import ServeConfig

_TAIL = 4000


def serve(config: ServeConfig, host: str = "127.0.0.1", port: int = 3000) -> None:
    """Become a BentoML server that hosts the rewards of `config`. Does not return.

    Raises:
        ValueError: `host` is reached from outside and there is no token, or is not an address.
        UnknownRewardError: a reward does not exist.
    """
    command, environment = _command(config, host, port)
    # In place of this process, so that signals and the exit status are the server's own.
    os.execve(command[0], command, environment)


@contextmanager
def running(
    config: ServeConfig, host: str = "127.0.0.1", port: int = 0, *, start_timeout: float = 600.0
) -> Iterator[str]:
    """Run a BentoML server in a process of its own, and yield its URL once it is ready.

    Port 0 means a free one. The server is stopped on the way out, whatever happened.

    Raises:
        ValueError, UnknownRewardError: as `serve`.
        RuntimeError: it died, or was not ready in `start_timeout` seconds; has the end of its log.
    """
    port = port or _free_port(host)
    command, environment = _command(config, host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_ready(server, url, Path(log.name), start_timeout)
            yield url
        finally:
            _stop(server)


def _command(config: ServeConfig, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    if (
        not ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback
        and config.token is None
    ):
        raise ValueError(
            f"{host} can be reached from other machines and no token is set: "
            "set REWARDZOO_TOKEN, or bind 127.0.0.1"
        )
    from rewardzoo.rewards import resolve

    for name in config.rewards:
        resolve(name)
    options = ["--host", "127.0.0.1" if host == "localhost" else host, "--port", str(port)]
    environment = {key: value for key, value in os.environ.items() if key != "REWARDZOO_TOKEN"}
    environment |= config.environment()
    environment["BENTOML_DO_NOT_TRACK"] = "True"
    # The server must import this very copy, which need not be an installed one.
    here = str(Path(rewardzoo.__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        "rewardzoo.services:Zoo",
        *options,
    ], environment


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _wait_ready(server: subprocess.Popen[bytes], url: str, log: Path, timeout: float) -> None:
    end = time.monotonic() + timeout
    # While weights load, the port accepts and does not answer: a short limit, and ask again.
    with httpx.Client(timeout=1.0, trust_env=False) as client:
        while server.poll() is None and time.monotonic() < end:
            with suppress(httpx.HTTPError):
                if client.get(f"{url}/v2/health/ready").status_code == 200:
                    return
            time.sleep(0.05)
    what = f"ended with status {server.returncode}" if server.poll() is not None else "is not ready"
    tail = log.read_text(errors="replace")[-_TAIL:]
    raise RuntimeError(f"the server {what}; the end of its log:\n{tail}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, how)
        with suppress(subprocess.TimeoutExpired):
            server.wait(timeout=10)
            return
