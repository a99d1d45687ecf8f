"""From the groups of a loader to the tables of a `ScoreStore`, streamed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rewardzoo.clients.compare.groups import Group
from rewardzoo.clients.compare.store import CHUNK, DATA, ITEMS, PAIRS, ScoreStore, write_whole
from rewardzoo.clients.compare.summaries import DataInfo

_PAIRS_AT_ONCE = 65_536


class Tables:
    """Items and pairs as they come; an image that several groups of one prompt have is one item."""

    def __init__(self) -> None:
        self.prompts: set[str] = set()
        self.items: dict[tuple[str, str], int] = {}
        self.pairs = 0
        self.digest = hashlib.sha256()

    def rows(self, groups: Iterable[Group]) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
        """Yield, group by group, the rows of items and of pairs that it adds.

        Raises:
            ValueError: a group's pair names an image that it does not have.
        """
        for group in groups:
            self.prompts.add(group.prompt_id)
            self.digest.update(json.dumps(asdict(group), sort_keys=True).encode())
            fresh, numbers = [], []
            for place, image in enumerate(group.images):
                key = (group.prompt_id, image)
                if key not in self.items:
                    self.items[key] = len(self.items)
                    fresh.append(_item_row(group, place))
                numbers.append(self.items[key])
            self.pairs += len(group.pairs)
            yield fresh, [_pair_row(group, numbers, pair) for pair in group.pairs]


def build(folder: Path, root: Path, groups: Callable[[], Iterable[Group]], **known: str) -> ScoreStore:
    """Open the store in `folder` for these groups, written first where there is none yet.

    `known` has the fields of `DataInfo` that are not counted: name, benchmark, source, license. Image
    references are relative to `root`.

    Raises:
        ValueError: there are no images, or the folder holds other data.
    """
    if (folder / DATA).exists():
        store = ScoreStore(folder)
        tables = Tables()
        for _ in tables.rows(groups()):
            pass
        if tables.digest.hexdigest() != store.info.fingerprint:
            raise ValueError(f"{folder} holds other data of that name: choose another --name or --out")
        return store
    folder.mkdir(parents=True, exist_ok=True)
    tables = Tables()
    _write(folder, tables.rows(groups()))
    if not tables.items:
        raise ValueError(f"there are no images in {known['source']}")
    info = DataInfo(
        **known,
        prompts=len(tables.prompts),
        items=len(tables.items),
        pairs=tables.pairs,
        fingerprint=tables.digest.hexdigest(),
    )
    text = json.dumps({"info": asdict(info), "root": str(root.resolve())}, indent=1, ensure_ascii=False)
    write_whole(folder / DATA, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    return ScoreStore(folder)


def _write(folder: Path, rows: Iterable[tuple[list[dict[str, Any]], list[dict[str, Any]]]]) -> None:
    import pyarrow
    from pyarrow import parquet

    words = pyarrow.list_(pyarrow.string())
    text = {"prompt_id": pyarrow.string(), "prompt": pyarrow.string(), "image": pyarrow.string()}
    items = pyarrow.schema(
        {**text, "split": pyarrow.string(), "categories": words, "rating": pyarrow.float64()}
        | {"metadata": pyarrow.string()}
    )
    pairs = pyarrow.schema(
        {"a": pyarrow.int64(), "b": pyarrow.int64(), "label": pyarrow.int8(), "categories": words}
    )
    with (
        parquet.ParquetWriter(folder / ITEMS, items) as items_file,
        parquet.ParquetWriter(folder / PAIRS, pairs) as pairs_file,
    ):
        some_items: list[dict[str, Any]] = []
        some_pairs: list[dict[str, Any]] = []
        for fresh_items, fresh_pairs in rows:
            some_items += fresh_items
            some_pairs += fresh_pairs
            while len(some_items) >= CHUNK:
                items_file.write_table(pyarrow.Table.from_pylist(some_items[:CHUNK], items))
                some_items = some_items[CHUNK:]
            if len(some_pairs) >= _PAIRS_AT_ONCE:
                pairs_file.write_table(pyarrow.Table.from_pylist(some_pairs, pairs))
                some_pairs = []
        if some_items:
            items_file.write_table(pyarrow.Table.from_pylist(some_items, items))
        if some_pairs:
            pairs_file.write_table(pyarrow.Table.from_pylist(some_pairs, pairs))


def _item_row(group: Group, place: int) -> dict[str, Any]:
    return {
        "prompt_id": group.prompt_id,
        "prompt": group.prompt,
        "image": group.images[place],
        "split": group.split,
        "categories": list(group.categories),
        "rating": group.ratings[place] if group.ratings else None,
        "metadata": json.dumps(dict(group.metadata)) if group.metadata else None,
    }


def _pair_row(group: Group, numbers: list[int], pair: tuple[int, int, int]) -> dict[str, Any]:
    i, j, label = pair
    return {"a": numbers[i], "b": numbers[j], "label": label, "categories": list(group.categories)}
