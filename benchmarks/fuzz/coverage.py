"""The parser again, searched by coverage: libFuzzer mutates valid messages towards code it has not seen.

    pip install 'rewardzoo[bench]'
    python -m benchmarks.fuzz.coverage --runs 1000000 --out benchmarks/results/fuzz_coverage.json

Any exception but `WireError` ends it. An input's first two bytes are the length of the JSON; 65535 is none.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from rewardzoo.clients import wire
from rewardzoo.errors import require

_CHILD = """
import sys
import atheris
with atheris.instrument_imports():
    from rewardzoo.clients import wire
    from rewardzoo.services.inference import OUTPUTS, read_items

def parse(data):
    length = int.from_bytes(data[:2], "little")
    try:
        found = wire.decode(data[2:], None if length == 65535 else length, key="inputs", max_texts=4096)
        wire.requested_outputs(found.header, OUTPUTS)
        list(read_items(found))
    except wire.WireError:
        pass

atheris.Setup(sys.argv, parse)
atheris.Fuzz()
"""


def seeds() -> dict[str, bytes]:
    """Return valid messages to begin from: raw pixels, files, tensors in JSON, metadata."""
    images, files = np.zeros((2, 4, 4, 3), np.uint8), np.array([b"\x89PNG\r\n", b"RIFF"], object)
    prompts, notes = np.array([b"a", "ä".encode()], object), np.array([b"{}", b'{"a": [1, null]}'], object)
    found = {}
    for name, tensors, binary in (
        ("raw", {"images": images, "prompts": prompts}, None),
        ("files", {"images": files, "prompts": prompts, "metadata": notes}, None),
        ("json", {"images": images[:1, :1, :1], "prompts": prompts[:1]}, ["images"]),
    ):
        outputs = [{"name": "scores", "parameters": {"binary_data": True}}]
        chunks, length = wire.encode({"id": "1", "outputs": outputs}, tensors, key="inputs", binary=binary)
        found[name] = length.to_bytes(2, "little") + b"".join(map(bytes, chunks))
    return found


def main(
    runs: Annotated[int, typer.Option(help="How many inputs.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Other inputs for each.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write the result there.")] = None,
) -> None:
    """Search until that many inputs were parsed, or one breaks the parser: the command then ends with 1."""
    require("atheris", extra="bench")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in seeds().items():
            (Path(folder) / name).write_bytes(data)
        options = [f"-runs={runs}", f"-seed={seed}", "-print_final_stats=1", "-max_len=8192", folder]
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, *options], stderr=subprocess.PIPE, text=True, check=False
        )
    stats = dict(re.findall(r"^stat::(\w+):\s+(\d+)$", done.stderr, re.MULTILINE))
    covered = re.findall(r"cov: (\d+)", done.stderr)
    result = {
        "inputs": int(stats.get("number_of_executed_units", 0)),
        "new_inputs_kept": int(stats.get("new_units_added", 0)),
        "slowest_s": int(stats.get("slowest_unit_time_sec", 0)),
        "edges_first_last": [int(covered[0]), int(covered[-1])] if covered else [],
        "seed": seed,
        "broken": done.returncode != 0,
    }
    print(json.dumps(result, indent=1))
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    if done.returncode:
        print(done.stderr[-4000:], file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
