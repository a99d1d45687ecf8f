"""`rewardzoo push`: a trained variant into a hub repository."""

from __future__ import annotations

from typing import Annotated

import typer

from rewardzoo.errors import require


def push(
    name: Annotated[str, typer.Argument(help="The trained variant: orm:runs/my-orm.")],
    repository: Annotated[str, typer.Argument(help="The repository on the hub: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private, where it is made.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="The branch to commit to, made where it is not there; by default main.")
    ] = None,
) -> None:
    """Upload what `rewardzoo train critic` made, without its checkpoints, and say under which name it serves.

    The token is the hub client's own: `hf auth login`, or HF_TOKEN.
    """
    require("torch", extra="models")
    from rewardzoo.rewards._push import push as upload

    typer.echo(f"rewardzoo serve {upload(name, repository, private=private, branch=revision)}")
