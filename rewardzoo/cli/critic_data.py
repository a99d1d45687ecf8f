"""`rewardzoo critic-data import | export`: the published formats of critics' data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardzoo.errors import require

app = typer.Typer(help="Read and write critics' data in the published formats.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The data set's folder: `data.folder` of `train critic`.")]
Split = Annotated[str, typer.Option(help="The split: train, or the name of a held-out one.")]


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="LLaVA's conversations with orm's and parm's questions, or prompt, chosen and rejected: "
            ".json or .jsonl."
        ),
    ],
    folder: Folder,
    split: Split = "train",
    images: Annotated[
        Path | None, typer.Option(help="What paths of pictures are relative to, if not to the file.")
    ] = None,
) -> None:
    """Make a split of a data set from a published file. Nothing is kept where a record cannot be used."""
    require("datasets", extra="train")
    from rewardzoo.trainers.critic.formats import import_data

    typer.echo(f"{import_data(source, folder, split, images)} rows are in {folder / split}")


@app.command()
def export(
    folder: Folder,
    target: Annotated[
        Path, typer.Argument(help="FILE.json for LLaVA's conversations, FILE.jsonl for chosen and rejected.")
    ],
    split: Split = "train",
) -> None:
    """Write a split as a file, and its pictures to the folder FILE_images beside it."""
    require("datasets", extra="train")
    from rewardzoo.trainers.critic.formats import export_data

    typer.echo(f"{export_data(folder, split, target)} records are in {target}")
