"""What the base install is in megabytes, and what importing it costs on top of numpy, in a fresh environment.

    python benchmarks/import_time.py [--rounds 15]

The environment is made by `venv` and pip, with the versions of constraints.txt; it takes a minute. Statements
are timed as whole processes and in turn, and the fastest counts: what else the machine does only adds to it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[1]
STATEMENTS = {
    "numpy": "import numpy",
    "rewardzoo": "import numpy, rewardzoo",
    "RewardClient": "import numpy; from rewardzoo import RewardClient",
}
IMPORTS = 7
SHOWN = ("numpy", "httpx", "PIL.Image", "tenacity", "rewardzoo.clients")
HEAVY = ("torch", "transformers", "bentoml", "scipy", "huggingface_hub", "pandas")
SIZES = """
import importlib.metadata as metadata, json
sizes = {}
for found in metadata.distributions():
    files = (found.locate_file(file) for file in found.files or ())
    sizes[found.metadata["Name"].lower()] = sum(file.stat().st_size for file in files if file.is_file())
print(json.dumps(sizes))
"""


def environment(folder: Path) -> tuple[Path, dict[str, float]]:
    """Install the base into a new environment: its Python, and how many MB each package that came has."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    before = sizes(python)
    # A copy, because pip leaves its build beside what it builds.
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "tests", "demo")
    source = shutil.copytree(ROOT, folder.parent / "source", symlinks=True, ignore=left_out)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", source], check=True)
    added = {name: size for name, size in sizes(python).items() if name not in before}
    return python, {name: round(added[name] / 1e6, 2) for name in sorted(added, key=lambda n: -added[n])}


def sizes(python: Path) -> dict[str, int]:
    """Bytes of each installed package, compiled files included."""
    told = subprocess.run([python, "-I", "-c", SIZES], check=True, capture_output=True, text=True).stdout
    return {name: int(size) for name, size in json.loads(told).items()}


def importtime(python: Path) -> dict[str, Any]:
    """What `-X importtime` says of the client: milliseconds in all, how many modules, what weighs most."""
    command = [python, "-I", "-X", "importtime", "-c", "import rewardzoo.clients"]
    runs = []
    for _ in range(IMPORTS):
        told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        runs.append(re.findall(r"import time:\s+(\d+) \|\s+(\d+) \| +(\S+)", told))
    rows = min(runs, key=lambda run: sum(int(own) for own, _, _ in run))
    cumulative = {name: int(whole) / 1e3 for _, whole, name in rows}
    return {
        "milliseconds": round(sum(int(own) for own, _, _ in rows) / 1e3, 1),
        "modules": len(rows),
        "cumulative_ms": {name: round(cumulative[name], 1) for name in SHOWN},
        "heavy_modules": sorted({name for _, _, name in rows} & set(HEAVY)),
    }


def timed(python: Path, rounds: int) -> dict[str, float]:
    """Seconds of each statement, of the fastest process."""
    seconds: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(rounds):
        for name, statement in STATEMENTS.items():
            started = time.perf_counter()
            subprocess.run([python, "-I", "-c", statement], check=True)
            seconds[name].append(time.perf_counter() - started)
    return {name: round(min(values), 4) for name, values in seconds.items()}


def main(rounds: Annotated[int, typer.Option(help="Processes a statement.")] = 15) -> None:
    with tempfile.TemporaryDirectory() as folder:
        python, packages = environment(Path(folder) / "venv")
        fastest = timed(python, rounds)
        result = {
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "rounds": rounds,
            "load_average": round(os.getloadavg()[0], 1),
            "fastest_seconds": fastest,
            "added_to_numpy": {
                name: round(fastest[name] - fastest["numpy"], 4) for name in ("rewardzoo", "RewardClient")
            },
            "importtime": importtime(python),
            "installed_mb": round(sum(packages.values()), 1),
            "installed_mb_without_numpy_and_minis": round(
                sum(packages.values()) - packages["numpy"] - packages["rewardzoo"], 1
            ),
            "packages_mb": packages,
        }
    print(json.dumps(result, indent=1))
    (ROOT / "benchmarks" / "results" / "import_time.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
