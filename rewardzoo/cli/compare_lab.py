"""`rewardzoo compare lab`: the paper in miniature."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rewardzoo.cli import compare
from rewardzoo.errors import require

if TYPE_CHECKING:
    from rewardzoo.clients.compare.study import Study


def lab(
    out: Annotated[Path, typer.Option(help="Folder of the study: pictures, runs, logs and the report.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION.SETTING=VALUE]...", help="Settings over those of lab_grpo and lab_dpo."
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="Mini reward to train on; may be repeated. By default five, trained differently."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each algorithm on each reward.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of GRPO; DPO sees as many images.")] = 30,
    scaling_seeds: Annotated[
        int, typer.Option(min=0, help="Seeds of the scaling axes; 0 leaves them out.")
    ] = 1,
    evaluation_prompts: Annotated[int, typer.Option(min=2, help="Prompts a split that runs end on.")] = 200,
    pool_prompts: Annotated[int, typer.Option(min=2, help="Prompts a split to pick images of.")] = 100,
    pool_size: Annotated[int, typer.Option(min=2, help="Images to pick from, a prompt.")] = 16,
    give_up_below: Annotated[
        float, typer.Option(min=0, max=1, help="Potential below which PARM's search gives a path up.")
    ] = 0.2,
    processes: Annotated[int, typer.Option(min=1, help="Processes at a time, of a thread each.")] = 2,
    resamples: compare.Resamples = 2000,
    confidence: compare.Confidence = 0.95,
    seed: compare.Seed = 0,
) -> None:
    """Train GRPO and DPO on several mini rewards, and say which of the paper's claims hold here.

    Stopped or killed, the same command goes on; what is done is not done again.
    """
    bootstrap = compare._begin(resamples, confidence, seed)
    require("accelerate", extra="train")
    require("matplotlib", extra="compare")
    from rewardzoo.trainers.lab.study.conduct import conduct
    from rewardzoo.trainers.lab.study.jobs import StoppedError
    from rewardzoo.trainers.lab.study.recipes import default_rewards
    from rewardzoo.trainers.lab.study.settings import StudySettings

    settings = StudySettings(
        rewards=tuple(reward or default_rewards()),
        seeds=seeds,
        steps=steps,
        scaling_seeds=min(scaling_seeds, seeds),
        evaluation_prompts=evaluation_prompts,
        pool_prompts=min(pool_prompts, evaluation_prompts),
        pool_size=pool_size,
        give_up_below=give_up_below,
        overrides=tuple(overrides or ()),
    )
    console = Console(stderr=True, highlight=False)
    try:
        found = conduct(
            out,
            settings,
            processes=processes,
            bootstrap=bootstrap,
            made=compare._made(),
            say=lambda text: console.print(text, markup=False),
        )
    except StoppedError as error:
        console.print(str(error), markup=False)
        raise typer.Exit(error.exit_code) from None
    _print(found.study)
    Console().print(f"[bold]{found.html}[/]", highlight=False)


def _print(study: Study) -> None:
    table = compare._table("claim", "here", "", "measured")
    for finding in study.findings:
        told = compare._told(finding.estimate, finding.percent)
        table.add_row(finding.claim, finding.verdict, told, finding.measure)
    console = Console()
    console.print(table)
    for each in study.left_out:
        console.print(f"left out: {each}", markup=False, highlight=False)


def add_to(app: typer.Typer) -> None:
    """Add the command to `rewardzoo compare`."""
    app.command()(lab)
