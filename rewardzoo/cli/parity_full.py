"""`rewardzoo parity --full`: the released architecture, upstream's pass and then ours, a process each."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PARITY = Path(__file__).resolve().parents[2] / "tests" / "parity"
FAMILIES = ("hpsv2", "imagereward", "pickscore")
ENVIRONMENTS = Path("~/.cache/rewardzoo/oracles").expanduser()


def run(
    names: Sequence[str],
    oracle_python: Path | None,
    upstream: Path | None,
    threads: int,
    record: Path,
    console: Console,
) -> int:
    """Measure each family and keep the numbers in `record`; return 1 if a score differs, else 0.

    Raises:
        ValueError: a family has no oracle that builds the released size, or the oracle fails.
    """
    failed = 0
    for family in names or FAMILIES:
        script = PARITY / "oracles" / f"{family}.py"
        if not script.exists() or "--full" not in script.read_text(encoding="utf-8"):
            raise ValueError(f"no full-size oracle for {family!r}: there are {', '.join(FAMILIES)}")
        extra = ["--upstream", str(upstream)] if upstream else []
        if not extra and '"--upstream"' in script.read_text(encoding="utf-8"):
            raise ValueError(f"{family}: give --upstream CHECKOUT; the first lines of {script} say which")
        python = oracle_python or _environment(script, console)
        with tempfile.TemporaryDirectory(prefix="rewardzoo-parity-") as workplace:
            found = _measure([str(python), str(script), *extra], threads, Path(workplace), console)
        console.print(_table(found))
        for fault in found.pop("faults"):
            console.print(f"[red]{family}[/]: {fault}", highlight=False)
            failed = 1
        known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({**known, family: found}, indent=1) + "\n", encoding="utf-8")
    return failed


def _measure(oracle: list[str], threads: int, workplace: Path, console: Console) -> dict[str, Any]:
    from rewardzoo.rewards._parity import measure, read_case

    shutil.copytree(PARITY / "inputs", workplace / "inputs")
    out = workplace / "fixtures"
    name = Path(oracle[1]).stem
    console.print(f"{name}: upstream, at the released size …")
    command = [*oracle, "--full", "--out", str(out)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    (folder,) = (path.parent for path in out.glob("*/case.json"))
    case = read_case(folder)
    console.print(f"{name}: ours …")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:  # a process of its own, for its peak memory
        result, cost = pool.submit(measure, folder, threads).result()
    return {
        "reward": case.reward,
        "oracle": result.oracle,
        "environment": result.environment,
        "pairs": result.pairs,
        "threads": threads,
        "upstream_seconds": case.seconds,
        "upstream_cpu_seconds": case.cpu_seconds,
        "upstream_gib": case.peak_gib,
        "our_seconds": round(cost.seconds, 2),
        "our_cpu_seconds": round(cost.cpu_seconds, 2),
        "our_load_seconds": round(cost.load_seconds, 2),
        "our_gib": round(cost.peak_gib, 2),
        "difference": float(f"{result.difference:.2e}"),
        "faults": list(result.faults),
    }


def _environment(script: Path, console: Console) -> Path:
    """Return the Python of the environment that the oracle's text names; pip makes it where it is missing."""
    named = re.search(r"requirements/([\w.-]+)\.txt", script.read_text(encoding="utf-8"))
    if named is None:
        raise ValueError(f"{script} names no requirements: give --oracle-python")
    requirements = script.parent / "requirements" / f"{named[1]}.txt"
    folder = ENVIRONMENTS / named[1]
    python, complete = folder / "bin" / "python", folder / ".complete"
    if not complete.exists():
        first = requirements.read_text(encoding="utf-8").partition("\n")[0]
        console.print(f"making {folder} from {requirements.name}: {first}", highlight=False)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        options = ["--no-deps"] if "--no-deps" in first else []
        subprocess.run([str(python), "-m", "pip", "install", *options, "-r", str(requirements)], check=True)
        complete.touch()
    return python


def _table(found: dict[str, Any]) -> Table:
    table = Table(
        "", "seconds", "CPU seconds", "peak GiB", title=f"{found['reward']}, {found['pairs']} pairs"
    )
    table.add_row(
        "upstream",
        str(found["upstream_seconds"]),
        str(found["upstream_cpu_seconds"]),
        str(found["upstream_gib"]),
    )
    table.add_row("ours", str(found["our_seconds"]), str(found["our_cpu_seconds"]), str(found["our_gib"]))
    table.add_row("max relative difference", f"{found['difference']:.1e}", "", "")
    return table
