"""What `import rewardzoo` and the client cost on top of `import numpy`: median seconds, whole processes.

    python benchmarks/import_time.py [--rounds 15]

The three are timed in turn, so that a slow spell of the machine meets them alike.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

STATEMENTS = {
    "numpy": "import numpy",
    "rewardzoo": "import numpy, rewardzoo",
    "RewardClient": "import numpy; from rewardzoo import RewardClient",
}


def main(rounds: Annotated[int, typer.Option(help="Processes a statement.")] = 15) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(rounds):
        for name, statement in STATEMENTS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    result = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "rounds": rounds,
        "median_seconds": medians,
        "added_to_numpy": {n: round(medians[n] - medians["numpy"], 4) for n in ("rewardzoo", "RewardClient")},
    }
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "results" / "import_time.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
