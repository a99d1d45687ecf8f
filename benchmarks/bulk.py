"""`rewardzoo bulk` on 20,000 lab images, killed twice with -9 and started again, beside a plain loop.

    python benchmarks/bulk.py [--rows 20000] [--reward hpsv2:mini] [--actors 1] [--threads 1] [--folder DIR]

Asserts that the output has every row once, in order, with the score that `LocalRewards` gives in this
process. Rates are images a second: the plain loop reads the same Parquet file and calls
`LocalRewards.score`, half of the rows before the bulk run and half after it, so that a slow spell of the
machine is seen in both; the steady rate of the bulk run leaves out the start of Ray and loading weights.
The loop and each actor compute on `threads` threads. With --folder the input is kept there, and used again.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from rewardzoo import LocalRewards
from rewardzoo.trainers.lab import triples

AT_ONCE = 256
KILLED_AT = (1 / 3, 2 / 3)


def write_input(path: Path, rows: int) -> None:
    """A right and a wrong picture a prompt, as Hugging Face datasets writes images."""
    items: list[dict[str, Any]] = []
    schema = pyarrow.schema(
        {
            "id": pyarrow.string(),
            "image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
            "prompt": pyarrow.string(),
        }
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for i, triple in enumerate(triples(rows // 2, seed=0)):
            for side, pixels in (("right", triple.right), ("wrong", triple.wrong)):
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                image = {"bytes": buffer.getvalue(), "path": None}
                items.append({"id": f"{i}-{side}", "image": image, "prompt": triple.prompt})
            if len(items) >= AT_ONCE:
                writer.write_table(pyarrow.Table.from_pylist(items, schema))
                items = []
        if items:
            writer.write_table(pyarrow.Table.from_pylist(items, schema))


def plain_loop(path: Path, reward: str, groups: Sequence[int]) -> tuple[NDArray[np.float32], float]:
    """Scores of some row groups, and the seconds that reading and scoring took."""
    scores = []
    with LocalRewards([reward], device="cpu") as rewards:
        rewards.score([np.zeros((64, 64, 3), np.uint8)], "warm up")
        started = time.perf_counter()
        for batch in parquet.ParquetFile(path).iter_batches(AT_ONCE, row_groups=list(groups)):
            images = [image["bytes"] for image in batch["image"].to_pylist()]
            scores.append(rewards.score(images, batch["prompt"].to_pylist()))
        return np.concatenate(scores), time.perf_counter() - started


def leg(command: Sequence[str], out: Path, kill_at: float, parts: int) -> dict[str, Any]:
    """Run the command; when that share of the parts is there, kill it with all that is in its group."""
    before = {path.name: path.stat().st_ino for path in out.glob("part-*")}
    started, began = time.perf_counter(), time.time()
    with tempfile.TemporaryFile("w+") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while run.poll() is None and len(list(out.glob("part-*"))) < kill_at * parts:
            time.sleep(0.1)
        killed = run.poll() is None and kill_at <= 1
        if killed:
            os.killpg(run.pid, signal.SIGKILL)
        status = run.wait()
        seconds = time.perf_counter() - started
        log.seek(0)
        assert killed or status == 0, log.read()
    assert all((out / name).stat().st_ino == inode for name, inode in before.items()), "a part was rewritten"
    fresh = sorted((out / n.name).stat().st_mtime for n in out.glob("part-*") if n.name not in before)
    rows = [parquet.read_metadata(p).num_rows for p in sorted(out.glob("part-*")) if p.name not in before]
    steady = fresh[-1] - fresh[0]
    return {
        "killed": killed,
        "parts": len(fresh),
        "seconds": round(seconds, 1),
        "seconds_to_first_part": round(fresh[0] - began, 1),
        "steady_images_per_second": round((sum(rows) - rows[0]) / steady, 1),
        "_steady": (sum(rows) - rows[0], steady),
    }


def legs(path: Path, out: Path, reward: str, actors: int, parts: int) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "rewardzoo", "bulk", str(path), "--reward", reward, "--out", str(out)]
    command += ["--device", "cpu", "--actors", str(actors)]
    for kill_at in (*KILLED_AT, 2.0):
        yield leg(command, out, kill_at, parts)


def main(
    rows: Annotated[int, typer.Option(help="How many images.")] = 20_000,
    reward: Annotated[str, typer.Option(help="Which reward.")] = "hpsv2:mini",
    actors: Annotated[int, typer.Option(help="Actors of the bulk run.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of the loop and of each actor.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="Where to keep the input.")] = None,
    result: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(__file__).parent
    / "results"
    / "bulk.json",
) -> None:
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory(prefix="rewardzoo-bulk-") as scratch:
        path, out = (folder or Path(scratch)) / "in.parquet", Path(scratch) / "out"
        if not path.exists():
            write_input(path, rows)
        groups = parquet.ParquetFile(path).metadata.num_row_groups
        first, before = plain_loop(path, reward, range(groups // 2))
        done = list(legs(path, out, reward, actors, -(-rows // 512)))
        rest, after = plain_loop(path, reward, range(groups // 2, groups))
        expected = np.concatenate([first, rest])
        table = parquet.read_table(out)
        assert table["row"].to_pylist() == list(range(rows)), "a row is missing, or there twice"
        assert table["id"].to_pylist() == parquet.read_table(path, columns=["id"])["id"].to_pylist()
        scores = table[reward].to_numpy()
        deviation = float(np.abs(scores - expected).max())
        assert deviation <= 1e-5, deviation
    images, seconds = map(sum, zip(*(one.pop("_steady") for one in done), strict=True))
    plain = rows / (before + after)
    whole = rows / sum(one["seconds"] for one in done)
    figures = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "torch": torch.__version__,
        "reward": reward,
        "rows": rows,
        "actors": actors,
        "threads_of_the_loop_and_of_each_actor": threads,
        "rows_once_and_in_order": True,
        "largest_deviation_from_in_process": deviation,
        "plain_loop_images_per_second": {
            "before": round(len(first) / before, 1),
            "after": round(len(rest) / after, 1),
            "all": round(plain, 1),
        },
        "bulk_legs": done,
        "bulk_steady_images_per_second": round(images / seconds, 1),
        "bulk_with_three_starts_images_per_second": round(whole, 1),
        "steady_against_plain_loop": round(images / seconds / plain, 2),
    }
    print(json.dumps(figures, indent=1))
    result.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
