"""Train the mini generator that ships in the package: `python -m rewardzoo.trainers.lab.train_generator`.

It sees pictures of in-domain scenes alone, and captions in the style of the lab's in-domain prompts but for
a share, `SHORT`, in the short style of out-of-domain ones. No combination of `HELD_OUT` is ever in either. At
the end a share of captions, `CORRUPTED`, says one thing that is false of its picture: so rewards have
something to teach.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import JanusForConditionalGeneration
from transformers.models.janus.modeling_janus import JanusVQVAE

from rewardzoo.trainers.lab.captions import tokenize_scenes
from rewardzoo.trainers.lab.generator import build, janus_config, save, train_language_model
from rewardzoo.trainers.lab.generator_report import report, show
from rewardzoo.trainers.lab.vq import reconstruction_accuracy, sharpen, train_vq


class Keep(StrEnum):
    """What a training starts from."""

    nothing = "nothing"
    vq = "vq"
    all = "all"


OUT = Path(__file__).parents[1] / "policies" / "minis" / "generator"


def main(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = OUT,
    vq_steps: Annotated[int, typer.Option(help="Steps of 8 pictures for the VQ model.")] = 2200,
    sharpen_steps: Annotated[int, typer.Option(help="Steps of 8 pictures for its decoder alone.")] = 400,
    images: Annotated[int, typer.Option(help="Pictures for the language model.")] = 48_000,
    steps: Annotated[int, typer.Option(help="Steps of 32 pictures for the language model.")] = 7000,
    seed: Annotated[int, typer.Option(help="Seed of the weights, scenes and captions.")] = 0,
    sheet: Annotated[Path | None, typer.Option(help="PNG to write samples to.")] = None,
    keep: Annotated[Keep, typer.Option(help="What to take from `out`, trained before.")] = Keep.nothing,
    lr: Annotated[float, typer.Option(help="Learning rate of the language model at its highest.")] = 3e-3,
) -> None:
    """Train the mini generator and print how often the exact judge finds its pictures right."""
    config = janus_config()
    vq_config: Any = config.vq_config
    if keep is not Keep.nothing:
        before = JanusForConditionalGeneration.from_pretrained(out, dtype=torch.float32)
        vq = before.model.vqmodel
    else:
        torch.manual_seed(seed)
        vq = JanusVQVAE(vq_config)
        train_vq(vq, vq_steps, seed=seed)
        # The tokens of what ships, which has 16 bits.
        vq.half().float()  # type: ignore[no-untyped-call]
        sharpen(vq, sharpen_steps, seed=seed + 7)
    vq.half().float()
    right = reconstruction_accuracy(vq, 1000, seed + 1)
    print(f"reconstructions judged right: {right:.3f}", flush=True)
    data = tokenize_scenes(vq, images, seed + 2)
    used = int((torch.bincount(data.tokens.flatten()) > 0).sum())
    print(f"codes in use: {used} of {vq_config.num_embeddings}", flush=True)
    torch.manual_seed(seed)
    net = build(config)
    if keep is Keep.all:
        net.load_state_dict(before.state_dict())
    net.model.vqmodel.load_state_dict(vq.state_dict())
    save(net, out)
    train_language_model(net, data, steps, seed=seed, lr=lr)
    save(net, out)
    report(out, seed + 4)
    if sheet is not None:
        show(out, sheet, seed + 5)


if __name__ == "__main__":
    typer.run(main)
