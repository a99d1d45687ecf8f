"""`rewardzoo parity`: our scores against upstream's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rewardzoo.rewards._parity import Result

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "parity" / "fixtures"
FULL_SIZE = ROOT / "benchmarks" / "results" / "full_size.json"


def parity(
    names: Annotated[
        list[str] | None, typer.Argument(help="Rewards, recipes or case folders; all where none is given.")
    ] = None,
    fixtures: Annotated[Path, typer.Option(help="Folder of the cases.")] = FIXTURES,
    markdown: Annotated[Path | None, typer.Option(help="Write the table here, e.g. docs/parity.md.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Build the released size and run upstream beside it.")
    ] = False,
    oracle_python: Annotated[
        Path | None, typer.Option(help="Python of upstream's environment; made by pip where not given.")
    ] = None,
    upstream: Annotated[
        Path | None, typer.Option(help="Checkout of upstream's repository, for oracles that run from one.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of a --full run, on both sides.")] = 2,
    weights: Annotated[
        bool, typer.Option("--weights", help="Check scores that upstream published, on released weights.")
    ] = False,
    images: Annotated[Path | None, typer.Option(help="Folder of upstream's pictures for --weights.")] = None,
) -> None:
    """Compare with upstream's own scores; ends with 1 where one differs beyond its tolerance."""
    from rewardzoo.cli import parity_full, parity_golden
    from rewardzoo.rewards._parity import check_case, find_cases

    console = Console()
    if weights:
        raise typer.Exit(parity_golden.run(names or [], images, fixtures.parent / "golden.json", console))
    if full:
        raise typer.Exit(parity_full.run(names or [], oracle_python, upstream, threads, FULL_SIZE, console))
    results = []
    for folder in find_cases(fixtures, names or ()):
        with console.status(folder.name):
            results.append(check_case(folder))
    console.print(_table(results))
    for result in results:
        for fault in result.faults[:5]:
            console.print(f"[red]{result.case}[/]: {fault}", highlight=False)
        if len(result.faults) > 5:
            console.print(f"[red]{result.case}[/]: and {len(result.faults) - 5} more")
    if markdown:
        markdown.write_text(page(results, FULL_SIZE), encoding="utf-8")
    if not all(result.ok for result in results):
        raise typer.Exit(1)


def _table(results: Iterable[Result]) -> Table:
    table = Table("")
    table.add_column("case", no_wrap=True)
    table.add_column("oracle", overflow="fold")
    for heading in ("pairs", "max rel. difference", "dtype"):
        table.add_column(heading, justify="right")
    for r in results:
        mark = "[green]✓[/]" if r.ok else "[red]✗[/]"
        table.add_row(mark, r.case, r.oracle, str(r.pairs), f"{r.difference:.1e}", r.dtype)
    return table


def rows(results: Iterable[Result]) -> list[list[str]]:
    """Return the cells of the page's table; the difference, which varies between machines, is the last."""
    return [
        [
            f"`{r.recipe}`",
            f"`{r.case}`",
            r.oracle,
            r.environment,
            str(r.pairs),
            r.dtype,
            f"{r.difference:.1e}" if r.ok else f"**{r.difference:.1e}**",
        ]
        for r in results
    ]


def page(results: Sequence[Result], full_size: Path) -> str:
    """Return docs/parity.md."""
    body = [
        _INTRODUCTION,
        _markdown(
            ["recipe", "case", "oracle", "its environment", "pairs", "dtype", "max relative difference"],
            rows(results),
        ),
        _METHOD,
    ]
    if full_size.exists():
        measured = json.loads(full_size.read_text(encoding="utf-8"))
        cells = [row for name in sorted(measured) for row in _full_rows(measured[name])]
        body += [_FULL_SIZE, _markdown(_FULL_HEADINGS, cells), ""]
    return "\n".join(body)


_FULL_HEADINGS = [
    "reward",
    "oracle",
    "threads",
    "whose",
    "seconds",
    "CPU seconds",
    "peak GiB",
    "max rel. difference",
]


def _full_rows(m: dict[str, Any]) -> list[list[str]]:
    sides = []
    for whose, prefix in (("upstream", "upstream"), ("ours", "our")):
        numbers = [f"{m[f'{prefix}_{key}']:.1f}" for key in ("seconds", "cpu_seconds", "gib")]
        difference = f"{m['difference']:.1e}" if whose == "ours" else ""
        sides.append([f"`{m['reward']}`", str(m["oracle"]), str(m["threads"]), whose, *numbers, difference])
    return sides


def _markdown(headings: list[str], cells: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_INTRODUCTION = """\
# Parity: our scores against upstream's

Written by `rewardzoo parity --markdown docs/parity.md`; do not edit it by hand.

A reward that is off by one percent trains a different model. So each recipe is compared with the code of
the people who released it: that code, in an environment of its own, scores pairs of images and prompts with
a small model in the released checkpoint's format, and ours loads the same checkpoint through the loader of
the released one and must give the same scores in float32, within a relative difference of 1e-5.
"""

_METHOD = """
- **Relative difference** of a pair: |ours - upstream's| / max(|upstream's|, 0.001 of the case's largest
  score). A case's number is its largest, of scores and of numeric details. It varies in the last digits
  between machines.
- **Weights** are random, all of them: no bias is 0 and no scale is 1, so nothing hides in a neutral element.
  They are small; the architecture's code, key names and file format are the released ones. That the
  released sizes agree as well is shown where this page has them.
- **Pairs**: `tests/parity/inputs`. Pictures wide and tall, 1x1, 4096x256, 3x1000, with a longest side of
  exactly 224, RGBA, greyscale with and without alpha, palettes, 1-bit, CMYK, JPEG with an EXIF rotation,
  WebP; prompts empty, blank, over 77 and over 300 tokens, in other scripts, with emoji, combining accents,
  quotes, newlines, HTML entities, and with the tokenizers' own special tokens spelled out.
- Where upstream fails on a picture that it could have converted, it was given the converted picture; the
  pair in `case.json` says `"converted": true` or `"padded": true`.
- **Oracles**: `tests/parity/oracles/NAME.py` says which code it runs and what around it is ours. To make a
  fixture anew: an environment of `tests/parity/oracles/requirements`, then
  `ENV/bin/python tests/parity/oracles/NAME.py --out tests/parity/fixtures`.
- What this cannot show is that the released weights on the hub are those that upstream meant.
  `rewardzoo parity --weights --images DIR` checks the scores that upstream published, where the weights are
  on disk.
"""

_FULL_SIZE = """
## At the released size

`rewardzoo parity --full`: the released architecture with random weights, one prompt and eight pictures, on
this project's build machine (CPU, float32). Upstream's time is that of its own call; it takes the pictures
one by one, and `hpsv2` reads the checkpoint anew in every call. Ours includes decoding and preparing the
pictures, not the one-time loading. The machine was doing other work, so CPU seconds say more than seconds.
Peaks are those of the whole process; the oracle's has drawn the weights as well.
"""
