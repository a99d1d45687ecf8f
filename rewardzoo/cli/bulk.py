"""`rewardzoo bulk`: score what outgrows a request, to Parquet, resumably."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rewardzoo import columns
from rewardzoo.cli.serve import parse_weights
from rewardzoo.errors import require

if TYPE_CHECKING:
    from rewardzoo.services.bulk import BulkRun

_INTERRUPTED = 130


def bulk(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Parquet, JSONL, CSV or WebDataset .tar: files, folders, globs."
        ),
    ],
    reward: Annotated[list[str], typer.Option(help="Reward to score with; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder for the parts; with --ray-address on shared storage.")],
    device: Annotated[str, typer.Option(help="auto (GPUs where there are any), cpu or cuda.")] = "auto",
    actors: Annotated[
        int | None,
        typer.Option(help="Processes that score; by default one a GPU or, without, one a CPU up to 8."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Items a forward; by default what the reward's spec has.")
    ] = None,
    chunk_rows: Annotated[
        int | None, typer.Option(help="Rows a part, and what a kill can cost each actor; 512 by default.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="auto or HOST:PORT of a Ray cluster; by default this machine.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH: weights on disk to use instead of the hub's.")
    ] = None,
    image_column: Annotated[str, typer.Option(help="Column with the images.")] = columns.IMAGE,
    prompt_column: Annotated[str, typer.Option(help="Column with the prompts.")] = columns.PROMPT,
    metadata_column: Annotated[str, typer.Option(help="Column with the metadata.")] = columns.METADATA,
    id_column: Annotated[str, typer.Option(help="Column to keep as id.")] = columns.ID,
) -> None:
    """Score rows by the million. Killed or stopped, it goes on when started again in the same words.

    Rows that cannot be scored keep their error in NAME.error; the command ends with 1 only when that is all.
    """
    for module in ("ray", "aiohttp", "pyarrow"):
        require(module, extra="bulk")
    require("torch", extra="bulk")
    from rewardzoo.services.bulk import BulkConfig, BulkRun, Columns

    config = BulkConfig(
        inputs=inputs,
        rewards=reward,
        out=out,
        device=device,
        weights=parse_weights(weights),
        columns=Columns(image_column, prompt_column, metadata_column, id_column),
        chunk_rows=chunk_rows,
        batch_size=batch_size,
        actors=actors,
        address=ray_address,
    )
    console = Console(stderr=True, highlight=False)
    with BulkRun(config) as run:
        was_finished = run.finished
        try:
            if not was_finished:
                _score(run, console)
        except KeyboardInterrupt:
            console.print(f"stopped at {run.rows_done:,} of {run.rows:,} rows; the same command goes on")
            raise typer.Exit(_INTERRUPTED) from None
        summary = run.summary()
    if was_finished:
        console.print("nothing to do: all rows were scored before")
    failed = ", ".join(f"{name} {count:,}" for name, count in summary.failed.items())
    console.print(f"{summary.rows:,} rows in {out}/part-*.parquet; without a score: {failed}")
    if summary.scored:
        console.print(f"{summary.scored:,} of them in {summary.seconds:.1f} s, {summary.rate:,.1f} images/s")
    if min(summary.failed.values()) == summary.rows:
        raise typer.Exit(1)


def _score(run: BulkRun, console: Console) -> None:
    before = run.rows_done
    bar = Progress(
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} images/s"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("", total=run.rows, completed=before, rate=0.0)
        for rows in run.score():
            bar.update(task, advance=rows, rate=run.summary().rate)
