"""`rewardzoo train`: a generator learns from rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rewardzoo.errors import require

if TYPE_CHECKING:
    from rewardzoo.trainers.config import Config
    from rewardzoo.trainers.policies.policy import ARImagePolicy

app = typer.Typer(help="Train an autoregressive image generator on rewards.", no_args_is_help=True)

ConfigOption = Annotated[str, typer.Option("--config", help="A YAML file, or the name of one that ships.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.SETTING=VALUE]...", help="Settings over those of the file."),
]


@app.command()
def grpo(config: ConfigOption, overrides: Overrides = None) -> None:
    """Train with GRPO. Started again in the same words, a run goes on from its last checkpoint.

    Ends with 0 when done, with 75 when rewards were gone for longer than rewards.timeout, and with 128 and
    its number after a signal; the checkpoint is saved then.
    """
    require("accelerate", extra="train")
    from rewardzoo.trainers.grpo import GRPOConfig, train

    _run(GRPOConfig, train, config, overrides)


@app.command()
def dpo(config: ConfigOption, overrides: Overrides = None) -> None:
    """Train with DPO, on pairs from a file or of the generator's own images. Ends as `grpo` does."""
    require("accelerate", extra="train")
    from rewardzoo.trainers.dpo import DPOConfig, train

    _run(DPOConfig, train, config, overrides)


@app.command()
def critic(config: ConfigOption, overrides: Overrides = None) -> None:
    """Make a critic's data, teach it, measure it, and write a variant that can be served: orm:FOLDER.

    Started again in the same words, it goes on where it was.
    """
    require("accelerate", extra="train")
    from rewardzoo.trainers.config import load_config
    from rewardzoo.trainers.critic.config import CriticConfig
    from rewardzoo.trainers.critic.train import train

    settings = load_config(CriticConfig, config, overrides or [])
    out = train(settings)
    family = settings.model.base.partition(":")[0]
    Console().print(f"rewardzoo serve {family}:{out}", highlight=False)


def _run(
    kind: type[Config],
    train: Callable[[Config, ARImagePolicy], int],
    config: str,
    overrides: list[str] | None,
) -> None:
    """Train as a configuration says, and end with the exit code that says how it went."""
    from accelerate import PartialState

    from rewardzoo.trainers.config import load_config
    from rewardzoo.trainers.policies.loading import load_policy
    from rewardzoo.trainers.rewards import RewardsLostError

    settings = load_config(kind, config, overrides or [])
    try:
        code = train(settings, load_policy(settings.policy))
        if code == 0 and PartialState().is_main_process:
            typer.echo(f"the trained policy is in {settings.run.out / 'policy'}")
    except RewardsLostError as error:
        Console(stderr=True).print(f"error: {error}", style="bold red", highlight=False, markup=False)
        code = error.exit_code
    raise typer.Exit(code)
