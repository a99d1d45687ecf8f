"""The report as Markdown: the words and the tables, without figures and pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rewardzoo.clients.compare.report.view import Cell, Commands, Section, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#])")


def render(sections: Sequence[Section], *, title: str, kinds: str, made: str, version: str) -> str:
    """Write sections as GitHub's Markdown. What comes from prompts and names is escaped."""
    lines = [f"# {_escaped(title)}", "", f"{_escaped(kinds)}. Made {made} by rewardzoo {version}.", ""]
    for section in sections:
        lines += [f"## {_escaped(section.title)}", ""]
        for paragraph in section.lead:
            lines += [_escaped(paragraph), ""]
        for block in section.blocks:
            if isinstance(block, Table):
                lines += [*_table(block), ""]
            elif isinstance(block, Commands):
                # Indented, so that nothing in a command ends the block.
                shown = [f"    {line}" for command in block.lines for line in command.splitlines()]
                lines += [_escaped(block.caption), "", *shown, ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(table: Table) -> Iterator[str]:
    yield _escaped(table.caption)
    yield ""
    yield "| " + " | ".join(map(_escaped, table.header)) + " |"
    # Numbers stand at the right, as they do on the page.
    right = [any(row[i].number is not None for row in table.rows) for i in range(len(table.header))]
    yield "|" + "|".join("---:" if r else "---" for r in right) + "|"
    for row in table.rows:
        yield "| " + " | ".join(map(_cell, row)) + " |"


def _cell(cell: Cell) -> str:
    shown = _escaped(cell.text)
    if cell.tone == "good":
        shown = f"**{shown}**"
    return f"{shown} ({_escaped(cell.small)})" if cell.small else shown


def _escaped(value: str) -> str:
    return " ".join(_SPECIAL.sub(r"\\\1", value).split())
