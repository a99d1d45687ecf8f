"""The command line: `rewardzoo list | serve | score | bulk | compare | train | demo | doctor | …`."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from rewardzoo.cli.bulk import bulk
from rewardzoo.cli.catalog import list_rewards
from rewardzoo.cli.compare import compare_app
from rewardzoo.cli.compare_lab import add_to as add_lab_command
from rewardzoo.cli.compare_report import add_to as add_report_commands
from rewardzoo.cli.critic_data import app as critic_data
from rewardzoo.cli.demo import demo
from rewardzoo.cli.doctor import doctor
from rewardzoo.cli.parity import parity
from rewardzoo.cli.push import push
from rewardzoo.cli.score import score
from rewardzoo.cli.serve import serve
from rewardzoo.cli.train import app as train
from rewardzoo.cli.triton import triton_export
from rewardzoo.errors import MissingExtraError, RewardZooError

app = typer.Typer(
    help="Reward models for generated images: list, serve and score.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command("list")(list_rewards)
app.command()(serve)
app.command()(score)
app.command()(bulk)
add_report_commands(compare_app)
add_lab_command(compare_app)
app.add_typer(compare_app, name="compare")
app.add_typer(train, name="train")
app.add_typer(critic_data, name="critic-data")
app.command()(push)
app.command()(demo)
app.command()(doctor)
app.command()(parity)
app.command("triton-export")(triton_export)


def main() -> None:
    """Run the command line; an error made by the caller is one line, not a traceback."""
    try:
        app()
    except (RewardZooError, MissingExtraError, ValueError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, markup=True)
        sys.exit(1)
