"""What the lab's critics begin with, and how they are shipped: `orm:mini` and `parm:mini`.

    python -m rewardzoo.trainers.lab.critic_minis base
    rewardzoo train critic --config lab_orm
    rewardzoo train critic --config lab_parm
    python -m rewardzoo.trainers.lab.critic_minis ship orm parm

The base is the network of `hpsv3:mini`, a Qwen2-VL that has learned on rendered pictures what matches a
prompt. It is taught to answer, on the pictures of the mini generator, by the training that users have.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, cast

import typer

from rewardzoo.rewards import load
from rewardzoo.rewards._critic import Critic
from rewardzoo.trainers.lab.qwen_minis import write_base
from rewardzoo.trainers.lab.training import OUT

RUNS = Path("runs/lab_critics")
"""Where the configurations `lab_orm` and `lab_parm` keep what they make."""
app = typer.Typer(help="Begin and ship the lab's critics.")


@app.command()
def base(folder: Annotated[Path, typer.Argument(help="Folder to write.")] = RUNS / "base") -> None:
    """Write the network of `hpsv3:mini` with its tokenizer, in `transformers`' format."""
    write_base(folder)


@app.command()
def ship(
    names: Annotated[list[str], typer.Argument(help="Which critics: orm, parm.")],
    runs: Annotated[Path, typer.Option(help="Folder with the runs of those names.")] = RUNS,
    out: Annotated[Path, typer.Option(help="Folder to write to, one folder a reward.")] = OUT,
) -> None:
    """Write trained critics in 16 bits where the package has them; their temperatures stand in the code."""
    for name in names:
        vlm = cast(Critic, load(f"{name}:{runs / name}", device="cpu")).vlm
        shutil.rmtree(out / name, ignore_errors=True)
        for part in (vlm.model.half(), vlm.tokenizer, vlm.images.processor):
            part.save_pretrained(out / name)


if __name__ == "__main__":
    app()
