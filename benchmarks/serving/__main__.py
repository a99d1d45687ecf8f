"""`python -m benchmarks.serving [NAMES...] [--quick] [--device cuda]`."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.serving import (
    cold_start,
    faults,
    gpu,
    harness,
    latency,
    overload,
    recovery,
    replicas,
    served,
    soak,
    transport,
)

RUNS = {
    "transport": transport.main,
    "served": served.main,
    "latency": latency.main,
    "replicas": replicas.main,
    "recovery": recovery.main,
    "cold_start": cold_start.main,
    "faults": faults.main,
    "overload": overload.main,
    "soak": soak.main,
}
QUICK = {
    "transport": lambda: transport.main(rounds=2),
    "served": lambda: served.main(rounds=2, full=False),
    "latency": lambda: latency.main(requests=20, burst_seconds=2, burst_clients=8),
    "replicas": lambda: replicas.main(most=2, rounds=1),
    "recovery": lambda: recovery.main(phase_seconds=3, callers=4),
    "cold_start": lambda: cold_start.main(rounds=1, full=False),
    "faults": lambda: faults.main(items=800, clients=4, kills=1),
    "overload": lambda: overload.main(duration=3),
    "soak": lambda: soak.main(minutes=0.5, clients=2),
}
GPU = "gpu"
"""Runs only where it is named: on a processor, ViT-H/14 would take hours."""


def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(help=f"Which of {', '.join(RUNS)}, or {GPU}; all but that by default."),
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="A short run of each, to try the script; keeps no results.")
    ] = False,
    device: Annotated[str, typer.Option(help=f"A torch device, for {GPU}.")] = "auto",
) -> None:
    """Measure the service; tables here, JSON in benchmarks/results/serving_NAME.json."""
    for name in names or RUNS:
        if name not in (*RUNS, GPU):
            raise typer.BadParameter(f"no benchmark {name!r}: there are {', '.join(RUNS)}, {GPU}")
        harness.keep_results = not quick
        if name != GPU:
            (QUICK if quick else RUNS)[name]()
        elif quick:
            gpu.main(device, full=False, items=512, clients=2, rounds=4)
        else:
            gpu.main(device)


if __name__ == "__main__":
    typer.run(main)
