"""From a comparison's folder to its report: one HTML file, a Markdown summary, a table of all numbers."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from rewardzoo.clients.compare.outcomes import Outcomes
from rewardzoo.clients.compare.probe_effects import Probes
from rewardzoo.clients.compare.probes import pixels_of
from rewardzoo.clients.compare.report import markdown, plots
from rewardzoo.clients.compare.report.outcome_part import outcomes
from rewardzoo.clients.compare.report.overview_part import glance, grounds, judged_kinds, rewards_of
from rewardzoo.clients.compare.report.preference_part import agreement, preference
from rewardzoo.clients.compare.report.probe_part import probes
from rewardzoo.clients.compare.report.selection_part import best_of_n
from rewardzoo.clients.compare.report.study_part import study
from rewardzoo.clients.compare.report.view import Section
from rewardzoo.clients.compare.study import Study
from rewardzoo.clients.compare.summaries import (
    Agreement,
    BestOfN,
    Estimate,
    Preference,
    Summary,
    read_summaries,
)
from rewardzoo.errors import ItemError

HTML, MARKDOWN, NUMBERS = "report.html", "report.md", "report.parquet"
_THUMBNAIL = 256  # pixels of the longer side


@dataclass(frozen=True)
class Written:
    """The files of a report."""

    html: Path
    markdown: Path
    numbers: Path


def write_report(folder: Path, *, title: str = "Rewards compared") -> Written:
    """Write `report.html`, `report.md` and `report.parquet` of a comparison's folder into it.

    The page needs no other file and no network; sections are there for what was measured.

    Raises:
        ValueError: the folder holds no summary, or one that cannot be read.
    """
    found = list(read_summaries(folder))
    if not found:
        raise ValueError(f"{folder} holds nothing to report: run `rewardzoo compare` into it first")
    sections = sections_of(found, folder)
    written = Written(folder / HTML, folder / MARKDOWN, folder / NUMBERS)
    now = datetime.now(UTC)
    about = {
        "title": title,
        "kinds": judged_kinds(found),
        "made": f"{now:%Y-%m-%d %H:%M} UTC",
        "version": version("rewardzoo"),
    }
    written.html.write_text(_template().render(sections=sections, **about), encoding="utf-8")
    written.markdown.write_text(markdown.render(sections, **about), encoding="utf-8")
    _write_numbers(found, written.numbers)
    return written


def sections_of(found: Sequence[Summary], folder: Path) -> list[Section]:
    """Tell each summary as a section, between what stands first and what all rests on."""
    look = plots.looks(rewards_of(found))
    sections = [glance(found)]
    for summary in found:
        match summary:
            case Study():
                sections.append(study(summary))
            case Preference():
                sections.append(preference(summary, look))
            case BestOfN():
                sections.append(best_of_n(summary, look))
            case Agreement():
                sections.append(agreement(summary, folder))
            case Probes():
                sections.append(probes(summary, folder))
            case Outcomes():
                sections.append(outcomes(summary, look))
    return [*sections, grounds(found, folder)]


def _write_numbers(found: Sequence[Summary], path: Path) -> None:
    """Write every estimate of every summary as a row: what it is of, and value, low and high."""
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"kind": summary.kind, "data": summary.data.name, **row}
        for summary in found
        for row in _estimates(summary)
    ]
    names = ("kind", "data", "of", "statistic")
    schema = pyarrow.schema(
        {name: pyarrow.string() for name in names}
        | {name: pyarrow.float64() for name in ("value", "low", "high")}
    )
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)


def _estimates(summary: Summary) -> Iterator[dict[str, Any]]:
    for group in fields(summary):
        parts = getattr(summary, group.name)
        for part in parts if isinstance(parts, tuple) else ():
            if not is_dataclass(part):
                continue
            said = {f.name: getattr(part, f.name) for f in fields(part)}
            of = json.dumps(
                {"in": group.name} | {k: v for k, v in said.items() if isinstance(v, str | int)},
                ensure_ascii=False,
            )
            for name, value in said.items():
                if isinstance(value, Estimate):
                    yield {"of": of, "statistic": name, **asdict(value)}


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("rewardzoo.clients.compare.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg_url"] = lambda svg: _data_url("image/svg+xml", svg)
    environment.filters["thumbnail"] = thumbnail
    environment.filters["kind"] = lambda block: type(block).__name__
    return environment.get_template("report.html.j2")


def thumbnail(path: Path | None) -> str | None:
    """Return an image file as the data URL of a small WebP, None where it cannot be read."""
    if path is None:
        return None
    try:
        image = Image.fromarray(pixels_of(path))
    except ItemError:
        return None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=88, method=4)
    return _data_url("image/webp", file.getvalue())


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
