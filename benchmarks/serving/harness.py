"""Servers to measure, and reports of what was measured."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from rewardzoo.services.launch import free_port

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
console = Console()
keep_results = True
"""Whether reports are written to `RESULTS`; a quick run keeps none."""


class Server:
    """A server in processes of its own, on a free port of 127.0.0.1. Can be killed and started again."""

    def __init__(self, command: Sequence[str], ready: str, settings: Mapping[str, str] | None = None) -> None:
        self.command, self.ready_path = list(command), ready
        self.environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True", **(settings or {})}
        self.environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
        )
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: psutil.Popen | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the server

    def start(self) -> None:
        command = [part.replace("PORT", str(self.port)) for part in self.command]
        self._process = psutil.Popen(
            command,
            env=self.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_ready(self, timeout: float = 300.0) -> None:
        end = time.monotonic() + timeout
        with httpx.Client(timeout=1.0, trust_env=False) as client:
            while time.monotonic() < end and self._process is not None and self._process.poll() is None:
                with suppress(httpx.HTTPError):
                    if client.get(self.url + self.ready_path).status_code == 200:
                        return
                time.sleep(0.02)
        self._log.seek(0)
        raise RuntimeError(
            f"{self.command} is not ready:\n{self._log.read().decode(errors='replace')[-4000:]}"
        )

    def kill(self) -> None:
        """As the kernel does it: no goodbye, all processes at once."""
        found = self.processes()
        for process in found:  # not the group: BentoML's workers have sessions of their own
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found)
        self._process = None

    def processes(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        return [self._process, *self._process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """CPU time of all its processes so far."""
        return sum(sum(p.cpu_times()[:2]) for p in self.processes())

    def resident_mib(self) -> float:
        """Memory that all its processes hold now."""
        return sum(p.memory_info().rss for p in self.processes()) / 2**20


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        server.wait_ready()
        yield server
    finally:
        server.kill()


def fakes(**settings: object) -> Server:
    """A server of `fakes.py`; keywords become its `REWARDZOO_*`."""
    return _bentoml("benchmarks.serving.fakes:Fake", settings)


def zoo(*rewards: str, **settings: object) -> Server:
    """A server of real rewards; keywords become its `REWARDZOO_*`."""
    return _bentoml("rewardzoo.services:Zoo", {"rewards": ",".join(rewards), "device": "cpu", **settings})


def _bentoml(service: str, settings: Mapping[str, object]) -> Server:
    command = [sys.executable, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", "PORT"]
    variables = {f"REWARDZOO_{key.upper()}": str(value) for key, value in settings.items()}
    return Server(command, "/v2/health/ready", variables)


def pickle_peer() -> Server:
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:PORT", "--workers", "1"]
    return Server([*command, "benchmarks.serving.pickle_peer:app"], "/")


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def hardware() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def report(name: str, rows: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Print rows as a table; keep them with facts and hardware in `results/serving_NAME.json`."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    title = name + "".join(f", {key} {value}" for key, value in facts.items() if not isinstance(value, list))
    table = Table(title=title)
    if len(rows) > 1:
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(_shown(row.get(key, "")) for key in columns))
    else:  # lines are easier to read than one wide row
        for key in columns:
            table.add_row(key, _shown(rows[0][key]))
    console.print(table)
    if not keep_results:
        return
    RESULTS.mkdir(exist_ok=True)
    found = {"hardware": hardware(), **facts, "rows": list(rows)}
    (RESULTS / f"serving_{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
