from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from rewardzoo.clients.compare import images as module
from rewardzoo.clients.compare.images import ImageReader, parquet_cell
from rewardzoo.errors import ItemError


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """100 rows in row groups of 40: bytes, structs, structs of a path alone, and nothing."""
    rows: list[dict[str, Any]] = [
        {
            "plain": b"%d" % i,
            "struct": {"bytes": b"<%d>" % i, "path": None},
            "other": {"bytes": None, "path": "a.png"},
        }
        for i in range(100)
    ]
    rows[7]["plain"] = None
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=40)
    return tmp_path


@pytest.mark.parametrize("order", [range(0, 100, 3), range(99, -1, -11), [5, 5, 90, 41, 41, 2]])
def test_cells_are_read_in_any_order_from_bytes_and_structs(cells: Path, order: list[int]) -> None:
    with ImageReader(cells) as reader:
        for row in order:
            assert reader.open(parquet_cell("x.parquet", "plain", row)) == b"%d" % row
            assert reader.open(parquet_cell("x.parquet", "struct", row)) == b"<%d>" % row


def test_reading_forwards_reads_each_row_once(cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    iterate = module._Column._iterate

    def counted(self: Any, group: int) -> Any:
        for batch in iterate(self, group):
            batches.append(len(batch))
            yield batch

    monkeypatch.setattr(module._Column, "_iterate", counted)
    with ImageReader(cells) as reader:
        for row in range(8, 100):
            reader.open(parquet_cell("x.parquet", "plain", row))
    assert sum(batches) == 100
    assert max(batches) == 16


def test_a_path_in_parquet_is_relative_to_the_root(cells: Path) -> None:
    with ImageReader(cells) as reader:
        assert reader.open(parquet_cell("x.parquet", "other", 3)) == cells / "a.png"


def test_an_empty_cell_is_that_items_error(cells: Path) -> None:
    with ImageReader(cells) as reader, pytest.raises(ItemError, match="no image in row 7 of plain"):
        reader.open(parquet_cell("x.parquet", "plain", 7))
