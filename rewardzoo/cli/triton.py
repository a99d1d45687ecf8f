"""`rewardzoo triton-export`: a model repository for a Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rewardzoo.cli.serve import parse_weights


def triton_export(
    rewards: Annotated[list[str], typer.Argument(help="Rewards to export, e.g. hpsv2:v2.1 imagereward.")],
    out: Annotated[Path, typer.Option(help="The model repository; made where it does not exist.")],
    device: Annotated[
        str, typer.Option(help="auto for the GPUs where there are some, cpu, cuda, or cuda:N.")
    ] = "auto",
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Items that a request may have and Triton merges.")
    ] = None,
    delay_us: Annotated[
        int, typer.Option(min=0, help="Microseconds that a batch which is not full waits for company.")
    ] = 2000,
    instances: Annotated[int, typer.Option(min=1, help="Copies of each model a device.")] = 1,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH: weights to use instead of the hub's, by their path where Triton runs."),
    ] = None,
    python_env: Annotated[
        Path | None,
        typer.Option(help="A venv with rewardzoo, or conda-pack's archive of one, by its path there."),
    ] = None,
) -> None:
    """Write a model repository; each model of it loads its reward when Triton starts."""
    from rewardzoo.services.triton import Options, export

    options = Options(
        device=device,
        max_batch=max_batch,
        delay_us=delay_us,
        instances=instances,
        weights=parse_weights(weights),
        python_env=python_env,
    )
    console = Console()
    for folder in export(rewards, out, options):
        console.print(f"wrote {folder}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"start it: tritonserver --model-repository={out} --disable-auto-complete-config "
        "--http-address 127.0.0.1 --grpc-address 127.0.0.1",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
