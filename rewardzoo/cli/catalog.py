"""`rewardzoo list`: which rewards there are."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def list_rewards(
    url: Annotated[str | None, typer.Option(help="List what this server hosts instead.")] = None,
    token: Annotated[str | None, typer.Option(envvar="REWARDZOO_TOKEN", help="The server's token.")] = None,
) -> None:
    """Show names, variants, licences, score ranges, which end is better, and which weights are on disk."""
    table = _served(url, token) if url else _known()
    Console().print(table)


def _known() -> Table:
    from rewardzoo.rewards import is_on_disk, specs

    table = Table("reward", "what it is", "paper", "licence: code / weights", "range", "better", "weights")
    for spec in specs():
        for variant in spec.variants:
            low, high = spec.score_range
            table.add_row(
                f"[bold]{spec.name}:{variant.name}[/]",
                spec.title,
                spec.paper,
                f"{spec.code_license} / {variant.weights_license}",
                f"{low:g} … {high:g}",
                "higher" if spec.higher_is_better else "lower",
                "shipped" if variant.is_mini else "on disk" if is_on_disk(variant) else "not downloaded",
            )
    return table


def _served(url: str, token: str | None) -> Table:
    from rewardzoo.clients import RewardClient

    better = {"true": "higher", "false": "lower"}  # a server of Triton's has it as text
    table = Table("reward", "state", "recipe", "better", "dtype", "device", "weights' SHA-256", title=url)
    with RewardClient(url, token=token) as client:
        for reward in client.rewards():
            known = [str(reward.provenance.get(key, "")) for key in ("recipe", "dtype", "device")]
            known.insert(1, better.get(str(reward.provenance.get("higher_is_better")).lower(), ""))
            sha256 = str(reward.provenance.get("weights_sha256", ""))[:12]
            state = "ready" if reward.ready else "not ready"
            table.add_row(f"[bold]{reward.name}[/]", state, *known, sha256)
    return table
