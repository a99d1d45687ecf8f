"""`rewardzoo score`: images and a prompt, or a manifest, to a table or a file."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rewardzoo.cli.manifest import check_format, read_manifest, write_rows
from rewardzoo.cli.serve import parse_weights

if TYPE_CHECKING:
    from rewardzoo.clients import ScoreCache, Scorer

_ROWS_A_CALL = 256


def score(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files to score against --prompt.")
    ] = None,
    reward: Annotated[list[str] | None, typer.Option(help="Reward to score with; may be repeated.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt of all images given.")] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(help="JSONL, CSV or Parquet with the columns image, prompt and, if need be, metadata."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write rows here (.jsonl, .csv, .parquet).")] = None,
    url: Annotated[str | None, typer.Option(help="Score on this server; else in this process.")] = None,
    token: Annotated[str | None, typer.Option(envvar="REWARDZOO_TOKEN", help="The server's token.")] = None,
    device: Annotated[str, typer.Option(help="Device to score on in this process.")] = "auto",
    weights: Annotated[list[str] | None, typer.Option(help="NAME=PATH, in this process.")] = None,
) -> None:
    """Score images. Rows that cannot be scored keep their error, and the command then ends with 1.

    What a reward says beside its score goes to the column NAME.details of --out.
    """
    if not reward:
        raise typer.BadParameter("name at least one --reward; `rewardzoo list` shows them")
    if out:
        check_format(out)  # before the work, not after it
    rows = _rows(images, prompt, manifest)
    with closing(make_scorer(reward, url, token, device, parse_weights(weights))) as scorer:
        failed = _score_rows(rows, reward, scorer.score_result)
    if out:
        write_rows(rows, out)
    else:
        _print(rows, reward)
    if failed:
        Console(stderr=True).print(f"[red]{failed} of {len(rows)} rows could not be scored[/]")
        raise typer.Exit(1)


def _rows(images: list[Path] | None, prompt: str | None, manifest: Path | None) -> list[dict[str, Any]]:
    if manifest is not None and not images:
        return read_manifest(manifest)
    if images and prompt is not None and manifest is None:
        return [{"image": str(image), "prompt": prompt} for image in images]
    raise typer.BadParameter("give image files with --prompt, or --manifest FILE")


def make_scorer(
    rewards: list[str],
    url: str | None,
    token: str | None,
    device: str,
    weights: dict[str, Path],
    *,
    timeout: float = 120.0,
    cache: ScoreCache | None = None,
) -> Scorer:
    """Return a client of the server at `url`, or without one the rewards loaded in this process."""
    if url:
        from rewardzoo.clients import RewardClient

        return RewardClient(url, token=token, timeout=timeout, cache=cache)
    from rewardzoo.local import LocalRewards

    return LocalRewards(rewards, device=device, weights=weights, cache=cache)


def _score_rows(rows: list[dict[str, Any]], rewards: list[str], score_result: Callable[..., Any]) -> int:
    failed: set[int] = set()
    told = any(row.get("metadata") for row in rows)
    starts = range(0, len(rows), _ROWS_A_CALL)
    for start in track(starts, description="scoring", console=Console(stderr=True)):
        part = rows[start : start + _ROWS_A_CALL]
        result = score_result(
            [Path(row["image"]) for row in part],
            [row["prompt"] for row in part],
            reward=list(dict.fromkeys(rewards)),
            metadata=[row["metadata"] for row in part] if told else None,
        )
        for name, scored in result.parts.items():
            for row, value, said in zip(part, scored.scores, scored.details, strict=True):
                row[name] = None if math.isnan(value) else float(value)
                if said:
                    row[f"{name}.details"] = dict(said)
        for i, error in result.errors.items():
            failed.add(start + i)
            part[i]["error"] = str(error)
    # A column that one row has all rows have; the scores come first, then what is beside them.
    found = {key for row in rows for key in row}
    for key in [*(f"{name}.details" for name in rewards), "error"]:
        if key in found:
            for row in rows:
                row[key] = row.pop(key, None)
    return len(failed)


def _print(rows: list[dict[str, Any]], rewards: list[str]) -> None:
    table = Table("image", "prompt", *rewards, *(["error"] if any("error" in r for r in rows) else []))
    for row in rows:
        scores = ["—" if row[name] is None else f"{row[name]:.4f}" for name in rewards]
        table.add_row(row["image"], row["prompt"], *scores, row.get("error") or "")
    Console().print(table)
