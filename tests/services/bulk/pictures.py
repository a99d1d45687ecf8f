"""Input for the tests of bulk scoring: pictures of the lab, in every form that is read."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pyarrow
from PIL import Image
from pyarrow import parquet

from rewardzoo.trainers.lab import triples

KINDS = ("jsonl", "csv", "parquet", "tar")


@cache
def pictures(n: int) -> Sequence[tuple[str, bytes, str]]:
    """`n` times id, PNG file, prompt."""
    made = []
    for i, triple in enumerate(triples(n, seed=3)):
        buffer = io.BytesIO()
        Image.fromarray(triple.right).save(buffer, "PNG")
        made.append((f"k{i}", buffer.getvalue(), triple.prompt))
    return made


def write(folder: Path, kind: str, rows: Sequence[tuple[str, bytes, str]]) -> Path:
    """Write rows as one file of the kind; of a row whose file is empty there is no image."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rows.{kind}"
    if kind in ("jsonl", "csv"):
        for key, data, _ in rows:
            if data:
                (folder / f"{key}.png").write_bytes(data)
        table = [{"id": key, "image": f"{key}.png", "prompt": prompt} for key, _, prompt in rows]
        with path.open("w", newline="") as file:
            if kind == "jsonl":
                file.writelines(json.dumps(row) + "\n" for row in table)
            else:
                writer = csv.DictWriter(file, ["id", "image", "prompt"])
                writer.writeheader()
                writer.writerows(table)
    elif kind == "parquet":
        images = [{"bytes": data or None, "path": None} for _, data, _ in rows]
        keys, _, prompts = map(list, zip(*rows, strict=True))
        parquet.write_table(
            pyarrow.table({"id": keys, "image": images, "prompt": prompts}), path, row_group_size=7
        )
    else:
        with tarfile.open(path, "w") as tar:
            for key, data, prompt in rows:
                for name, content in ((f"{key}.png", data), (f"{key}.txt", prompt.encode())):
                    if content:
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
    return path
