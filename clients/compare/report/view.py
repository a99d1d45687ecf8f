"""What a report is made of, before it is HTML or Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rewardzoo.clients.compare.summaries import Estimate

DASH = "—"
"""What stands where there is no value."""
MINUS = "\N{MINUS SIGN}"
Tone = Literal["", "good", "bad"]


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is shown, small print beside it, and its value where it is a number."""

    text: str
    small: str = ""
    number: float | None = None
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first column names the row. A `folded` one is opened by a click."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure as an SVG file; `alt` says what it shows. Two that are `half` stand side by side."""

    caption: str
    svg: bytes
    alt: str
    half: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture of a gallery, and what stands below it: a title, and names with values."""

    path: Path | None
    title: str
    lines: tuple[tuple[str, str], ...] = ()
    tone: Tone = ""


@dataclass(frozen=True)
class Card:
    """Pictures that belong together, such as two of one prompt."""

    title: str
    pictures: tuple[Picture, ...]
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Cards in a grid; `columns` of them on a wide screen."""

    caption: str
    cards: tuple[Card, ...]
    columns: int = 3


@dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    caption: str
    lines: tuple[str, ...]


Block = Table | Drawing | Gallery | Commands


@dataclass(frozen=True)
class Section:
    """A part of a report; `lead` are paragraphs that say what is below and what it comes to."""

    id: str
    title: str
    lead: tuple[str, ...]
    blocks: tuple[Block, ...]


def text(value: str, *, small: str = "", tone: Tone = "") -> Cell:
    """Return a cell with a text."""
    return Cell(value, small, None, tone)


def number(value: float, form: str = ".3f", *, tone: Tone = "") -> Cell:
    """Return a cell with a number, a dash where there is none."""
    known = math.isfinite(value)
    return Cell(signed(value, form) if known else DASH, "", value if known else None, tone)


def estimate(value: Estimate, form: str = ".3f", *, tone: Tone = "") -> Cell:
    """Return a cell with a statistic, and with its interval as small print."""
    cell = number(value.value, form, tone=tone)
    if cell.number is None or not (math.isfinite(value.low) and math.isfinite(value.high)):
        return cell
    small = f"{signed(value.low, form)} … {signed(value.high, form)}"
    return Cell(cell.text, small, cell.number, tone)


def percent(value: Estimate, *, tone: Tone = "") -> Cell:
    """Return a cell with a share."""
    return estimate(value, ".1%", tone=tone)


def sentence_of(names: Sequence[str]) -> str:
    """Join names as a sentence does: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def signed(value: float, form: str) -> str:
    """Format a number with a true minus sign, and with none where it rounds to zero."""
    shown = format(value, form)
    return shown.replace("-", MINUS) if any(digit in "123456789" for digit in shown) else shown.lstrip("+-")
