"""`rewardzoo compare` on 100,000 judged pairs, killed with -9 on the way and started again.

    python benchmarks/compare.py [--pairs 100000] [--result FILE]

Two fake rewards in the same process answer (a colour of the first pixel), so that what is measured is the
comparison: reading, sending, keeping, and the statistics of all of it. Pictures are 64x64 PNG in Parquet,
two a pair, two pairs a prompt. Asserts that no item that was kept is scored again, and
that the accuracy is the one that the labels were drawn with. Peak memory is the whole process's.
"""

from __future__ import annotations

import io
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow
import typer
from PIL import Image
from pyarrow import parquet

RIGHT = 0.8
KILLED_AT = 0.4

# The reward runs in the same process: a server would add its own time, and memory that is not ours.
RUN = """
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import rewardzoo.cli.compare as cli
from rewardzoo.cli import main
from rewardzoo.clients.in_process import InProcess
from rewardzoo.clients.scorer import Scorer


LOG = Path(sys.argv.pop(1))


class Scored:
    details: Mapping = {}

    def __init__(self, value):
        self.value = value


class Colour:
    def __init__(self, name, channel, log):
        self.name, self._channel, self._log = name, channel, log

    def score_items(self, images, prompts, metadata):
        if self._log:
            with self._log.open("a") as file:
                file.write(f"{len(images)}\\n")
        return [Scored(float(image[0, 0, self._channel])) for image in images]

    def provenance(self):
        return {"reward": self.name}


def make_scorer(rewards, *_, **__):
    models = {name: Colour(name, int(name[-1]), LOG if name == rewards[0] else None) for name in rewards}
    return Scorer(InProcess(models), timeout=math.inf, max_in_flight=1)


cli.make_scorer = make_scorer
main()
"""


def write_pairs(path: Path, pairs: int) -> float:
    """Write pairs of which the first channel orders a share of `RIGHT` as the labels do; return the share."""
    rng = np.random.default_rng(0)
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    schema = pyarrow.schema(
        {"prompt": pyarrow.string(), "chosen": image, "rejected": image, "category": pyarrow.string()}
    )
    right = rng.random(pairs) < RIGHT
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, pairs, 500):
            rows: list[dict[str, Any]] = []
            for i in range(start, min(start + 500, pairs)):
                pair = [_png(200 if side else 100, rng) for side in (right[i], not right[i])]
                rows.append(
                    {
                        "prompt": f"prompt {i // 2}",
                        "chosen": {"bytes": pair[0]},
                        "rejected": {"bytes": pair[1]},
                        "category": f"kind {i % 10}",
                    }
                )
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
    return float(right.mean())


def _png(red: int, rng: np.random.Generator) -> bytes:
    pixels = np.full((64, 64, 3), (red, *rng.integers(0, 256, 2)), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def leg(folder: Path, pairs: int, kill_at: float) -> dict[str, Any]:
    """Run the command, and kill it when a share of the items is kept."""
    store, chunks = folder / "out" / "data" / "pairs", -(-2 * pairs // 256)
    command = [sys.executable, "-c", RUN, str(folder / "log"), "compare", "preference"]
    command += [str(folder / "pairs.parquet"), "--out", str(folder / "out")]
    command += ["--reward", "colour:0", "--reward", "colour:1"]
    before = {path.name for path in store.glob("scores-*.parquet")}
    started = time.perf_counter()
    with (folder / "output").open("w") as output:
        run = subprocess.Popen(command, stdout=output, stderr=output)
        peak = 0.0
        while run.poll() is None and len(list(store.glob("scores-*.parquet"))) < kill_at * chunks:
            peak = max(peak, _peak_mb(run.pid))
            time.sleep(0.2)
        killed = run.poll() is None
        if killed:
            run.send_signal(signal.SIGKILL)
        status = run.wait()
    assert killed or status == 0, (folder / "output").read_text()[-2000:]
    assert before <= {path.name for path in store.glob("scores-*.parquet")}
    return {"killed": killed, "seconds": round(time.perf_counter() - started, 1), "peak_mb": round(peak)}


def _peak_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line[:6] == "VmHWM:"), 0.0)


def main(
    pairs: Annotated[int, typer.Option(help="How many pairs.")] = 100_000,
    result: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(__file__).parent
    / "results"
    / "compare.json",
) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        share = write_pairs(folder / "pairs.parquet", pairs)
        legs = [leg(folder, pairs, KILLED_AT), leg(folder, pairs, 2.0)]
        scored = sum(map(int, (folder / "log").read_text().split()))
        summary = json.loads((folder / "out" / "preference-pairs.json").read_text())
        measured = {(a["reward"], a["category"]): a["estimate"] for a in summary["accuracies"]}
        assert abs(measured["colour:0", "all"]["value"] - share) < 1e-9
        # What was in flight at the kill, two chunks at most, is all that is scored twice.
        assert 2 * pairs <= scored <= 2 * pairs + 2 * 256
        figures = {
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
            "load_average_at_the_end": round(os.getloadavg()[0], 1),
            "pairs": pairs,
            "images": 2 * pairs,
            "rewards": 2,
            "categories": 10,
            "prompts": summary["data"]["prompts"],
            "resamples": summary["resamples"],
            "legs": legs,
            "peak_mb": max(one["peak_mb"] for one in legs),
            "images_scored_twice_after_the_kill": scored - 2 * pairs,
            "accuracy": measured["colour:0", "all"],
        }
    result.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    typer.run(main)
