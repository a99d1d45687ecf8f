"""Hostile requests: to the parser, to the service in this process, and over sockets to a real server.

    nice -n 10 python -m benchmarks.fuzz --requests 100000

Hypothesis builds valid messages and spoils them: their structure, lengths, tensors, images, compression,
headers, routes, forms. None may be answered with a status of 500 or above but 503 and 504, none may take
longer than `SLOW` seconds twice, nothing may raise but `WireError`, and the server must score as before at
the end.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.fuzz.targets import fuzz_app, fuzz_parser, fuzz_server


def main(
    count: Annotated[int, typer.Option("--requests", help="How many in all.")] = 1000,
    start: Annotated[int, typer.Option("--seed", help="Other requests for each.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the result there.")] = None,
) -> None:
    """Fuzz the parser (a half), the app (four tenths) and a real server (a tenth), each in a process."""
    began = time.perf_counter()
    runs: dict[str, Any] = {}
    failures: list[str] = []
    shares: dict[str, tuple[float, Callable[..., Any]]] = {
        "parser": (0.5, fuzz_parser),
        "app": (0.4, fuzz_app),
        "server": (0.1, fuzz_server),
    }
    with ProcessPoolExecutor(len(shares), get_context("spawn")) as pool:
        working = {name: pool.submit(run, int(count * part), start) for name, (part, run) in shares.items()}
    for name, work in working.items():
        done: Any = work.result()
        report, facts = done if isinstance(done, tuple) else (done, {})
        runs[name] = {
            "requests": sum(report.statuses.values()),
            "outcomes": dict(sorted(report.statuses.items())),
            "slowest_s": round(report.slowest, 3),
            "stalls_s": report.stalls,
            **facts,
        }
        failures += report.failures
        print(name, json.dumps(runs[name]), flush=True)
    result = {
        "requests": sum(run["requests"] for run in runs.values()),
        "failures": failures,
        "runs": runs,
        "seed": start,
        "seconds": round(time.perf_counter() - began),
        "python": platform.python_version(),
    }
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['requests']} requests, {len(failures)} failures")
    for failure in failures[:20]:
        print(failure)
    sys.exit(bool(failures))


if __name__ == "__main__":
    typer.run(main)
