"""`rewardzoo demo`: the whole path on one machine, offline: server, pictures, scores, a page to look at."""

from __future__ import annotations

import base64
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from rewardzoo.errors import require

if TYPE_CHECKING:
    from rewardzoo import RewardClient

REWARDS = ("hpsv2:mini", "imagereward:mini")


@dataclass(frozen=True)
class Candidate:
    """One picture for a prompt: what it shows, and what each reward gives it."""

    prompt: str
    shows: str
    image: NDArray[np.uint8]
    correct: bool
    scores: dict[str, float]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the contact sheet.")] = Path("demo"),
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of prompts and pictures.")] = 0,
    port: Annotated[int, typer.Option(help="Port of the server; 0 takes a free one.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running until Ctrl-C.")] = False,
) -> None:
    """Serve the mini rewards, score pictures that are right and wrong, rank them, write a contact sheet."""
    require("bentoml", extra="serve")
    from rewardzoo import RewardClient
    from rewardzoo.services.config import ServeConfig
    from rewardzoo.services.launch import running

    console = Console()
    console.print(f"starting a BentoML server with {' and '.join(REWARDS)} …")
    with running(ServeConfig(rewards=list(REWARDS), device="cpu"), port=port) as url:
        console.print(f"ready at {url}")
        with RewardClient(url) as client:
            groups = [score_group(client, group) for group in candidates(prompts, seed)]
        for group in groups:
            console.print(ranking(group))
        page = write_contact_sheet(groups, out / "index.html")
        console.print(f"contact sheet: [bold]{page}[/]")
        if keep:
            console.print(f"still serving at {url}; Ctrl-C stops it")
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                console.print("stopping")


def candidates(prompts: int, seed: int) -> list[list[Candidate]]:
    """Render, for each prompt, the right picture and one wrong in each way that applies; not scored yet."""
    from rewardzoo.trainers.lab import CATEGORIES, corrupt, judge, prompt_of, render, sample_scene

    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(prompts):
        scene = sample_scene(rng, entities=2)
        prompt = prompt_of(scene, rng=rng)
        shown = {"as asked": scene} | {f"wrong {kind}": corrupt(scene, rng, kind) for kind in CATEGORIES}
        images = {label: render(wrong, rng, 128) for label, wrong in shown.items()}
        groups.append(
            [Candidate(prompt, label, im, judge(im, prompt).correct, {}) for label, im in images.items()]
        )
    return groups


def score_group(client: RewardClient, group: list[Candidate]) -> list[Candidate]:
    """Score one prompt's candidates with every reward; best by the first reward comes first."""
    for reward in REWARDS:
        scores = client.score([c.image for c in group], [c.prompt for c in group], reward=reward)
        for candidate, score in zip(group, scores, strict=True):
            candidate.scores[reward] = float(score)
    return sorted(group, key=lambda c: -c.scores[REWARDS[0]])


def ranking(group: list[Candidate]) -> Table:
    """One prompt's candidates as a table."""
    table = Table("rank", "picture", "exact judge", *REWARDS, title=group[0].prompt, title_justify="left")
    for rank, c in enumerate(group, 1):
        verdict = "[green]right[/]" if c.correct else "[red]wrong[/]"
        table.add_row(str(rank), c.shows, verdict, *(f"{c.scores[r]:.4f}" for r in REWARDS))
    return table


def write_contact_sheet(groups: list[list[Candidate]], path: Path) -> Path:
    """Write one self-contained HTML page with the pictures and their scores."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("rewardzoo.cli", "."), autoescape=True)
    environment.filters["data_url"] = _data_url
    page = environment.get_template("contact_sheet.html.j2").render(groups=groups, rewards=REWARDS)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path.resolve()


def _data_url(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
