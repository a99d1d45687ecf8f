"""The formats in which critics' data are published, into our Parquet and out of it.

    [{"image": "images/1.png", "conversations": [{"from": "human", "value": "<image>\\n..."},
                                                 {"from": "gpt", "value": "yes"}]}, ...]
    {"prompt": "a red circle", "chosen": "images/1.png", "rejected": "images/2.png"}

The first, JSON, is LLaVA's, for `loss: answers`: what ORM and PARM are trained from (arXiv 2501.13926;
ZiyuGuo99/Image-Generation-CoT, `scripts/parm.yaml`). The second, JSON lines, is for `loss: preference` and
for `rewardzoo train dpo`: `training/train_dpo.py` there. Pictures are read and written one by one.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rewardzoo.columns import check_text, read_object
from rewardzoo.errors import ItemError
from rewardzoo.trainers.critic.conversations import read_conversation, write_conversation
from rewardzoo.trainers.critic.records import Pair, Record, pairs_of, read, write_part

if TYPE_CHECKING:
    from datasets import Dataset

_PART = 1024
_SIDES = ("chosen", "rejected")
_OWN = ("picture", "step", "steps", "category")
"""Columns of ours that LLaVA takes no notice of."""


def import_data(source: Path, folder: Path, split: str, images: Path | None = None) -> int:
    """Read a published file as a split of a data set, whole or not at all; return how many rows it has.

    Paths of pictures are relative to `images`, or without it to the file. Steps are those that the export
    writes; without them an unfinished picture is at step 0 of 1.

    Raises:
        ValueError: the split is there already, or a record cannot be used; the message says which and why.
    """
    place, beside = folder / split, folder / f".{split}"
    if not source.is_file():
        raise ValueError(f"there is no file {source}")
    if place.exists() and any(place.iterdir()):
        raise ValueError(f"{place} holds data already: choose another folder or --split")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        count = 0
        for part, rows in enumerate(_parts(_rows(source, images or source.parent))):
            write_part(beside / f"part-{part:05d}.parquet", rows, type(rows[0]))
            count += len(rows)
        if not count:
            raise ValueError(f"{source} holds no records")
        beside.replace(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return count


def export_data(folder: Path, split: str, target: Path) -> int:
    """Write a split as conversations (`target` ends in .json) or as pairs (.jsonl); return how many.

    Pictures go to the folder `STEM_images` beside it, as PNG. A label between 0 and 1 becomes its yes or no.
    Pairs are those of the data, without ties, or else a right picture and a wrong one of a prompt.

    Raises:
        ValueError: another ending, no such split, or pairs that were to be conversations.
    """
    if target.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{target} must end in .json, for LLaVA's conversations, or in .jsonl, for pairs")
    rows = read(folder, split)
    paired = "image_a" in rows.column_names
    if paired and target.suffix == ".json":
        raise ValueError(f"{folder} holds pairs, about which nothing is asked: export to .jsonl")
    pictures = target.parent / f"{target.stem}_images"
    pictures.mkdir(parents=True, exist_ok=True)
    count = 0
    with target.open("w", encoding="utf-8") as file:
        if target.suffix == ".jsonl":
            found = _given_pairs(rows) if paired else _found_pairs(rows)
            for count, (prompt, *images) in enumerate(found, 1):
                sides = zip(_SIDES, images, strict=True)
                names = {side: _write(pictures, f"{count:07d}-{side}", image) for side, image in sides}
                file.write(_json({"prompt": prompt, **names}) + "\n")
        else:
            for count, row in enumerate(rows, 1):
                name = _write(pictures, f"{count:07d}", row["image"])
                own = {name: row[name] for name in _OWN}
                record = {"id": f"{row['picture']}-{row['step']}", "image": name, **own}
                said = write_conversation(row)
                file.write(("[\n" if count == 1 else ",\n") + _json({**record, "conversations": said}))
            file.write("\n]\n" if count else "[]\n")
    return count


def _rows(source: Path, images: Path) -> Iterator[Record | Pair]:
    """Read the file's records, which are all of the first one's kind."""
    records = _records(source)
    first = next(records, None)
    if first is None:
        return
    _, known = first
    rng = np.random.default_rng(0)
    for place, record in chain([first], records):
        try:
            if "conversations" in known:
                yield _asked(record, images)
            elif set(_SIDES) & set(known):
                yield _pair(record, images, swapped=rng.random() < 0.5)
            else:
                raise ValueError(
                    "expected image and conversations, or prompt, chosen and rejected; it has "
                    + ", ".join(known)
                )
        except (ValueError, ItemError) as error:
            raise ValueError(f"{source}, {place}: {error}") from error


def _parts(rows: Iterator[Record | Pair]) -> Iterator[list[Any]]:
    while some := list(islice(rows, _PART)):
        yield some


def _records(source: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield records with the name of their place in the file."""
    if source.suffix == ".jsonl":
        with source.open(encoding="utf-8") as file:
            for n, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield f"line {n}", read_object(line)
                    except ValueError as error:
                        raise ValueError(f"{source}, line {n}: {error}") from error
    elif source.suffix == ".json":
        try:
            found = json.loads(source.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{source} is not JSON: {error}") from error
        if not isinstance(found, list):
            raise ValueError(f"{source} must be a list of records, it is {type(found).__name__}")
        for n, record in enumerate(found, 1):
            if not isinstance(record, dict):
                raise ValueError(f"{source}, record {n}: expected an object, got {record!r:.60}")
            yield f"record {n}", record
    else:
        raise ValueError(f"{source} must end in .json or .jsonl")


def _pair(record: Mapping[str, Any], images: Path, *, swapped: bool) -> Pair:
    """Read a preference; by chance the better picture is the first or the second."""
    check_text(record, ["prompt", *_SIDES])
    chosen, rejected = (_read_picture(images, record[side]) for side in _SIDES)
    first, second = (rejected, chosen) if swapped else (chosen, rejected)
    return Pair(first, second, record["prompt"], float(not swapped))


def _asked(record: Mapping[str, Any], images: Path) -> Record:
    """Read a conversation about one picture."""
    name = record.get("image")
    if isinstance(name, list) and len(name) == 1:
        name = name[0]
    if not isinstance(name, str):
        raise ValueError(f"image must be the path of one picture, got {record.get('image')!r:.60}")
    stage, prompt, verdict, reason = read_conversation(record.get("conversations"))
    unfinished = stage in ("clarity", "potential")
    step, steps = record.get("step", 0 if unfinished else 1), record.get("steps", 1)
    if not (isinstance(step, int) and isinstance(steps, int)):
        raise ValueError(f"step and steps must be whole numbers, got {step!r} and {steps!r}")
    return Record(
        _read_picture(images, name),
        prompt,
        stage,
        float(verdict),
        step,
        steps,
        str(record.get("picture", record.get("id", name))),
        str(record.get("category", "")),
        reason,
    )


def _given_pairs(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    for row in rows:
        if row["label"] != 0.5:
            names = ("image_a", "image_b") if row["label"] > 0.5 else ("image_b", "image_a")
            yield row["prompt"], row[names[0]], row[names[1]]


def _found_pairs(rows: Dataset) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    for prompt, chosen, rejected in pairs_of(rows.select_columns(["stage", "label", "prompt"])):
        yield prompt, rows[chosen]["image"], rows[rejected]["image"]


def _read_picture(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # broken PNGs raise SyntaxError
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    return data


def _write(folder: Path, name: str, image: Image.Image) -> str:
    path = folder / f"{name}.png"
    image.convert("RGB").save(path)
    return f"{folder.name}/{path.name}"


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)
