"""Starting a real BentoML server: in the foreground, or for the length of a `with` block."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

import rewardzoo
from rewardzoo.services.config import ServeConfig
from rewardzoo.services.gate import check_address

_TAIL = 4000
_PATIENCE = 10.0
"""Seconds that a server and its workers have to end by themselves."""


# BentoML's default, "TLSv1", leaves clients of TLS 1.2 nothing but what has been out of favour for years.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True)
class TLS:
    """The files with which a server speaks HTTPS, in PEM.

    `ca_certs` are those of whom clients need a certificate; without, none is asked for. A key with a
    password is not taken, because BentoML would show the password on its workers' command lines.
    """

    certfile: Path
    keyfile: Path
    ca_certs: Path | None = None

    def options(self) -> list[str]:
        """Return BentoML's options.

        Raises:
            ValueError: a file does not exist.
        """
        files = {"certfile": self.certfile, "keyfile": self.keyfile, "ca-certs": self.ca_certs}
        options = ["--ssl-ciphers", _CIPHERS]
        for name, path in files.items():
            if path is not None and not path.is_file():
                raise ValueError(f"--ssl-{name} {str(path)!r} is not a file")
            options += [] if path is None else [f"--ssl-{name}", str(path.resolve())]
        if self.ca_certs is not None:
            options += ["--ssl-cert-reqs", str(int(ssl.CERT_REQUIRED))]
        return options


def serve(config: ServeConfig, host: str = "127.0.0.1", port: int = 3000, *, tls: TLS | None = None) -> None:
    """Become a BentoML server that hosts the rewards of `config`. Does not return.

    Raises:
        ValueError: `host` is reached from outside and there is no token, or is not an address; or a
            file of `tls` does not exist.
        UnknownRewardError: a reward does not exist.
    """
    command, environment = _command(config, host, port, tls)
    # In place of this process, so that signals and the exit status are the server's own.
    os.execve(command[0], command, environment)


@contextmanager
def running(
    config: ServeConfig,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    tls: TLS | None = None,
    start_timeout: float = 600.0,
    log: Path | None = None,
) -> Iterator[str]:
    """Run a BentoML server in a process of its own, and yield its URL once it is ready.

    Port 0 means a free one. What the server prints goes to the file `log`, where one is named. The server
    is stopped on the way out, whatever happened.

    Raises:
        ValueError, UnknownRewardError: as `serve`.
        RuntimeError: it died, or was not ready in `start_timeout` seconds; has the end of its log.
    """
    port = port or free_port(host)
    command, environment = _command(config, host, port, tls)
    url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    with tempfile.TemporaryDirectory() as folder, (log or Path(folder) / "log").open("wb") as output:
        server = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_ready(server, url, Path(output.name), start_timeout)
            yield url
        finally:
            _stop(server)


def _command(config: ServeConfig, host: str, port: int, tls: TLS | None) -> tuple[list[str], dict[str, str]]:
    check_address(config, host)
    from rewardzoo.rewards import resolve

    for name in config.rewards:
        resolve(name)
    options = ["--host", "127.0.0.1" if host == "localhost" else host, "--port", str(port)]
    options += tls.options() if tls else []
    secrets = ("REWARDZOO_TOKEN", "REWARDZOO_TOKEN_FILE")
    environment = {key: value for key, value in os.environ.items() if key not in secrets}
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


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of `host` that nobody listens on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _wait_ready(server: subprocess.Popen[bytes], url: str, log: Path, timeout: float) -> None:
    end = time.monotonic() + timeout
    # While weights load, the port accepts and does not answer: a short limit, and ask again.
    # Whose certificate it is does not matter: nothing secret is said, and the server is a child of ours.
    with httpx.Client(timeout=1.0, trust_env=False, verify=False) as client:
        while server.poll() is None and time.monotonic() < end:
            with suppress(httpx.HTTPError):
                if client.get(f"{url}/v2/health/ready").status_code == 200:
                    return
            time.sleep(0.05)
    what = f"ended with status {server.returncode}" if server.poll() is not None else "is not ready"
    tail = log.read_text(errors="replace")[-_TAIL:]
    raise RuntimeError(f"the server {what}; the end of its log:\n{tail}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to end; kill what does not, workers in sessions of their own included."""
    workers: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        workers = psutil.Process(server.pid).children(recursive=True)
    server.terminate()
    _, left = psutil.wait_procs(workers, timeout=_PATIENCE)
    for worker in left:
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    try:
        server.wait(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
