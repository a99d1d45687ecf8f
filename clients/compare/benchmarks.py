"""Published preference benchmarks in the formats they are published in, as groups."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from rewardzoo.clients.compare.groups import FIRST, SECOND, TIE, Group
from rewardzoo.clients.compare.images import parquet_cell, zip_member
from rewardzoo.clients.compare.rows import Row, cell, files_in, image_columns, read_rows


def hpdv2(path: Path, root: Path) -> Iterator[Group]:
    """HPDv2's `test.json`: prompt, image_path, rank (1 is best), raw_annotations. All pairs of a prompt.

    Images are in `root` or its folder `test`. Source: the README of tgxs002/HPSv2.
    """
    path = _file(path, "test.json")
    base = ""
    for number, row in enumerate(read_rows(path)):
        where = f"{path}, entry {number}"
        images, ranks = cell(row, "image_path", where), cell(row, "rank", where)
        if not number:
            base = _base(root, images[0], ("", "test"))
        yield _ranked(str(number), str(cell(row, "prompt", where)), [base + i for i in images], ranks, where)


def imagereward(path: Path, root: Path) -> Iterator[Group]:
    """ImageReward's `test.json` (id, prompt, generations, ranking), or ImageRewardDB's rows of images.

    The latter are metadata-test.parquet or the JSON of each folder: prompt_id, prompt, image_path, rank,
    classification. All pairs of a prompt; 1 is best and ranks may tie. Images are files, in `root` or its
    folder `test_images`, or in ImageRewardDB's zips. Source: test.py of THUDM/ImageReward; README of
    THUDM/ImageRewardDB.
    """
    path = _file(path, "test.json", "metadata-test.parquet")
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        return
    if "generations" in first:
        base = _base(root, first["generations"][0], ("", "test_images"))
        for number, row in enumerate((first, *rows)):
            where = f"{path}, entry {number}"
            images = [base + image for image in cell(row, "generations", where)]
            ranks = cell(row, "ranking", where)
            yield _ranked(str(cell(row, "id", where)), str(row["prompt"]), images, ranks, where)
        return
    prompts: dict[str, list[Row]] = {}
    for number, row in enumerate((first, *rows)):
        prompts.setdefault(str(cell(row, "prompt_id", f"{path}, row {number}")), []).append(row)
    for key, members in prompts.items():
        images = [_in_zip(root, str(row["image_path"])) for row in members]
        kind = [str(members[0]["classification"])] if members[0].get("classification") else []
        ranks = [row["rank"] for row in members]
        yield _ranked(key, str(members[0]["prompt"]), images, ranks, f"{path}, prompt {key}", kind)


def pickapic(path: Path, root: Path) -> Iterator[Group]:
    """Pick-a-Pic's Parquet: caption, jpg_0, jpg_1, label_0 (1, 0, or 0.5 for a tie), image_0_uid.

    Files whose name begins with "validation" are the split "validation", on which thresholds for ties are
    fitted. Rows without a label are left out. Source: yuvalkirstain/PickScore, eval_preference_predictor.py.
    """
    for file in files_in(path):
        split = "validation" if file.name.startswith("validation") else "test"
        name = _relative(file, root)
        seen: dict[tuple[str, str], str] = {}
        for number, row in enumerate(read_rows(file)):
            if row.get("has_label") is False:
                continue
            where = f"{file}, row {number}"
            caption, said = str(cell(row, "caption", where)), float(cell(row, "label_0", where))
            images = []
            for side in "01":
                reference = parquet_cell(name, f"jpg_{side}", number)
                # An image is in several comparisons; it is scored once.
                uid = row.get(f"image_{side}_uid") or reference
                images.append(seen.setdefault((caption, uid), reference))
            label = TIE if said == 0.5 else FIRST if said == 1 else SECOND
            yield Group(caption, caption, tuple(images), ((0, 1, label),), split=split)


def genai_bench(path: Path, root: Path) -> Iterator[Group]:
    """GenAI-Bench's images: people's ratings of 1 to 5, their mean a number an image.

    Parquet of BaiqiL/GenAI-Bench (Index, Prompt, Tags, HumanRatings, an image column a model), or a folder
    with genai_image.json, genai_skills.json and MODEL/INDEX.jpeg. Categories are the skills. Source:
    dataset.py of linzhiqiu/t2v_metrics.
    """
    if path.is_dir() and (path / "genai_image.json").is_file():
        yield from _genai_folder(path, root)
        return
    for file in files_in(path):
        name, there = _relative(file, root), set(image_columns(file))
        for number, row in enumerate(read_rows(file)):
            where = f"{file}, row {number}"
            rated = {m: r for m, r in cell(row, "HumanRatings", where).items() if r and m in there}
            tags = row.get("Tags") or {}
            kinds = [kind for kind, skills in tags.items() if skills]
            yield Group(
                str(cell(row, "Index", where)),
                str(cell(row, "Prompt", where)),
                tuple(parquet_cell(name, model, number) for model in rated),
                categories=tuple(dict.fromkeys([*kinds, *(s for k in kinds for s in tags[k])])),
                ratings=tuple(fmean(r) for r in rated.values()),
            )


def mj_bench(path: Path, root: Path) -> Iterator[Group]:
    """MJ-Bench's pairs: caption, image0, image1, label (0 or 1, the better image), category, subcategory.

    Parquet with images, or JSON with their paths. Without a category it is the file's name up to its first
    "-". The perspective bias is left out: it has single images and no preference. Source: inference.py and
    alignment/benchmark of MJ-Bench/MJ-Bench.
    """
    for file in [path] if path.suffix == ".json" else files_in(path):
        held = set(image_columns(file)) if file.suffix == ".parquet" else set()
        name = _relative(file, root) if held else ""
        for number, row in enumerate(read_rows(file)):
            category = str(row.get("category") or file.stem.partition("-")[0])
            if category == "bias":
                continue
            where = f"{file}, row {number}"
            label, caption = cell(row, "label", where), str(cell(row, "caption", where))
            if label not in (0, 1):
                raise ValueError(f"{where}: label must be 0 or 1, the better image; got {label!r}")
            sides = [f"image{side}" for side in (0, 1)]
            images = [
                parquet_cell(name, side, number) if side in held else str(cell(row, side, where))
                for side in sides
            ]
            kinds = [category]
            if row.get("subcategory"):
                kinds.append(f"{category}/{row['subcategory']}")
            pair = (0, 1, SECOND if label else FIRST)
            yield Group(caption, caption, tuple(images), (pair,), tuple(kinds))


def _ranked(
    key: str,
    prompt: str,
    images: Sequence[str],
    ranks: Sequence[float],
    where: str,
    kinds: Iterable[str] = (),
) -> Group:
    if len(images) != len(ranks):
        raise ValueError(f"{where}: {len(images)} images and {len(ranks)} ranks")
    pairs = tuple(
        (i, j, FIRST if ranks[i] < ranks[j] else SECOND if ranks[i] > ranks[j] else TIE)
        for i, j in combinations(range(len(images)), 2)
    )
    return Group(key, prompt, tuple(images), pairs, tuple(kinds))


def _genai_folder(path: Path, root: Path) -> Iterator[Group]:
    entries: Mapping[str, Any] = json.loads((path / "genai_image.json").read_text(encoding="utf-8"))
    skills: dict[int, list[str]] = {}
    tags = path / "genai_skills.json"
    for skill, members in json.loads(tags.read_text(encoding="utf-8")).items() if tags.is_file() else ():
        if skill != "all":
            for member in members:
                skills.setdefault(int(member), []).append(skill)
    for index, entry in entries.items():
        yield Group(
            index,
            str(entry["prompt"]),
            tuple(f"{model}/{index}.jpeg" for model in entry["models"]),
            categories=tuple(skills.get(int(index), ())),
            ratings=tuple(fmean(rated) for rated in entry["models"].values()),
        )


def _file(path: Path, *names: str) -> Path:
    if path.is_file():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    raise ValueError(f"no {' or '.join(names)} in {path}")


def _base(root: Path, image: str, bases: Sequence[str]) -> str:
    for base in bases:
        if (root / base / image).is_file():
            return f"{base}/" if base else ""
    tried = ", ".join(str(root / base / image) for base in bases)
    raise ValueError(f"the first image is not there, tried {tried}: name the folder with --images")


def _in_zip(root: Path, image: str) -> str:
    """Refer to one of ImageRewardDB's images: a file, or a member of its folder's zip."""
    folder = Path(image).parent
    for archive in (folder / f"{folder.name}.zip", folder.with_suffix(".zip")):
        if not (root / image).is_file() and (root / archive).is_file():
            return zip_member(archive.as_posix(), Path(image).name)
    return image


def _relative(file: Path, root: Path) -> str:
    # Not resolved: a cache of the hub's has links to files of other names.
    return Path(os.path.relpath(file, root)).as_posix()
