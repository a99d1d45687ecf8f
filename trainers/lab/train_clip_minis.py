"""Train `clipscore:mini` and `pickscore:mini`: `python -m rewardzoo.trainers.lab.train_clip_minis`.

PickScore is CLIP tuned on preferences (arXiv 2305.01569, sec. 3), and CLIPScore is CLIP as it is: so one run
makes both, CLIPScore's after the contrastive stage and PickScore's after the next, on preferences. In place
of pre-training they start from `hpsv2:mini`, whose towers have the same shapes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
import typer
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import rewardzoo.rewards
from rewardzoo.rewards import _clip
from rewardzoo.trainers.lab.pair_batches import Pairs, PairStream
from rewardzoo.trainers.lab.train_minis import (
    GRID,
    OUT,
    SIZE,
    make_optimizers,
    preference_accuracy,
    right_share,
    to_pixels,
    write_clip_tokenizer,
)

LR = 1e-3
LOUDNESS = 8.0
"""How much longer than a patch is what `quiet_the_norm` adds to it."""


def contrastive_loss(net: nn.Module, tokenize: _clip.Tokenize, batch: Pairs) -> tuple[Tensor, float]:
    """CLIP's loss over the batch; a prompt that occurs twice is not held against its other picture."""
    logits = _logits(net, tokenize, batch)
    same = torch.tensor([[a == b for b in batch.prompts] for a in batch.prompts])
    logits = logits.masked_fill(same & ~torch.eye(len(logits), dtype=torch.bool), -math.inf)
    target = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, right_share(_by_pair(logits))


def preference_loss(net: nn.Module, tokenize: _clip.Tokenize, batch: Pairs) -> tuple[Tensor, float]:
    """PickScore's loss: under each prompt, the share that a softmax over two pictures gives to the better."""
    scores = _by_pair(_logits(net, tokenize, batch))
    own = scores.diagonal(dim1=1, dim2=2)
    other = scores.flip(2).diagonal(dim1=1, dim2=2)
    return F.softplus(other - own).mean(), right_share(scores)


def _logits(net: nn.Module, tokenize: _clip.Tokenize, batch: Pairs) -> Tensor:
    """(2P, 2P) [prompt, picture]."""
    images = _clip.encode_images(net, to_pixels(batch.images))
    prompts = _clip.encode_prompts(net, tokenize(batch.prompts))
    scale: Tensor = cast(Any, net).logit_scale.exp().clamp(max=100)
    return scale * prompts @ images.T


def _by_pair(logits: Tensor) -> Tensor:
    """(P, 2, 2) [prompt, picture] of each pair, from (2P, 2P)."""
    half = len(logits) // 2
    pair = torch.arange(half)[:, None] + torch.tensor([0, half])
    return logits[pair[:, :, None], pair[:, None, :]]


def train(
    net: nn.Module,
    loss_of: Callable[[Pairs], tuple[Tensor, float]],
    steps: int,
    *,
    pairs: int,
    seed: int,
    lr: float,
) -> None:
    """Train with warm-up and cosine decay; every pair is seen once."""
    net.train().requires_grad_(True)
    data = PairStream(pairs, seed, SIZE, GRID)
    stream = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4))
    optimizers = make_optimizers(net, nn.Identity(), lr)
    won, started = 0.5, time.monotonic()
    for step in track(range(steps), description="training"):
        rate = lr * min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        loss, right = loss_of(next(stream))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        won += 0.02 * (right - won)
        if step % 100 == 99:
            seconds = time.monotonic() - started
            print(f"step {step + 1}: loss {loss.item():.3f}, right {won:.3f}, {seconds:.0f} s", flush=True)
    net.eval().requires_grad_(False)


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an open_clip network without a norm in front as `transformers` names them.

    The norm in front is left out, for `quiet_the_norm` to add.
    """
    renamed: dict[str, Tensor] = {}
    for key, weight in state.items():
        for theirs, ours in _NAMES:
            key = key.replace(theirs, ours)
        if key in ("visual_projection", "text_projection"):
            renamed[f"{key}.weight"] = weight.T
        elif "attn.in_proj_" in key:
            for part, piece in zip(("q_proj.", "k_proj.", "v_proj."), weight.chunk(3), strict=True):
                renamed[key.replace("attn.in_proj_", f"self_attn.{part}")] = piece
        else:
            renamed[key] = weight
    return {key: weight.clone().contiguous() for key, weight in renamed.items()}


_NAMES = (
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("visual.proj", "visual_projection"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("ln_final.", "text_model.final_layer_norm."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)


@torch.no_grad()
def quiet_the_norm(net: nn.Module, images: Iterable[Tensor]) -> None:
    """Set the norm in front of a vision tower so that it changes patches as little as it can.

    `transformers`' CLIP has this norm, `hpsv2:mini` has not; with it, so small a network learns more slowly.
    To every patch of `images` (N, 3, S, S) the same vector is added, long, and in the direction that patches
    differ in least. All are then about as long as that vector, so that the norm divides by about one number,
    which its scale gives back, and its bias takes the vector away.
    """
    tower = cast(Any, net).vision_model
    tokens = torch.cat([tower.embeddings(batch).flatten(0, 1) for batch in images])
    width = tokens.shape[1]
    centred = tokens - tokens.mean(1, keepdim=True)
    spread = centred.T @ centred / len(centred)
    # The norm takes the mean over the width away: the vector must have none.
    spread += 1e6 * torch.ones(width, width)
    direction = torch.linalg.eigh(spread).eigenvectors[:, 0]
    added = LOUDNESS * centred.norm(dim=1).mean() * direction
    tower.embeddings.position_embedding.weight += added
    size = (centred + added).square().mean(1).add(1e-5).sqrt().mean()
    tower.pre_layrnorm.weight.fill_(size)
    tower.pre_layrnorm.bias.copy_(tokens.mean() - added)


def start(weights: Path | None, seed: int) -> nn.Module:
    """Return a CLIP network with the knowledge of `hpsv2:mini`, in `weights` or shipped."""
    known = rewardzoo.rewards.load("hpsv2:mini", device="cpu", weights=weights)
    net = _clip.build(_clip.MINI)
    state = {**net.state_dict(), **from_open_clip(known.net.state_dict())}
    net.load_state_dict(state)
    batch = next(iter(PairStream(64, seed, SIZE, GRID)))
    quiet_the_norm(net, [to_pixels(batch.images)])
    return net


def save(net: nn.Module, folder: Path) -> None:
    """Write the weights in 16 bits, and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_clip_tokenizer(
        folder / "tokenizer.json", _clip.MINI["text_config"]["max_position_embeddings"]
    )
    if vocabulary != _clip.MINI["text_config"]["vocab_size"]:
        raise ValueError(f"_clip.MINI needs vocab_size {vocabulary}")
    state = {key: weight.half().contiguous() for key, weight in net.state_dict().items()}
    save_file(state, folder / "model.safetensors")


def main(
    out: Annotated[Path, typer.Option(help="Folder to write to, one folder a reward.")] = OUT,
    hpsv2: Annotated[
        Path | None, typer.Option(help="Folder of the hpsv2:mini to start from; the shipped one by default.")
    ] = None,
    contrastive: Annotated[int, typer.Option(help="Steps of the contrastive stage.")] = 200,
    preference: Annotated[int, typer.Option(help="Steps of the preference stage.")] = 200,
    pairs: Annotated[int, typer.Option(help="Pairs in a batch.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 100,
) -> None:
    """Train both minis and print how often each prefers the right picture."""
    torch.manual_seed(seed)
    net = start(hpsv2, seed)
    for name, loss, steps, lr in (
        ("clipscore", contrastive_loss, contrastive, LR),
        ("pickscore", preference_loss, preference, LR / 2),
    ):
        save(net, out / name)  # for the tokenizer, and as it is when there are no steps
        length = _clip.MINI["text_config"]["max_position_embeddings"]
        tokenize = _clip.tokenizer(out / name / "tokenizer.json", length)
        if steps:
            seed += 1
            train(net, partial(loss, net, tokenize), steps, pairs=pairs, seed=seed, lr=lr)
        save(net, out / name)
        model = rewardzoo.rewards.load(f"{name}:mini", device="cpu", weights=out / name)
        shares = preference_accuracy(model, 1000, seed=10_000 + seed)
        print(name, {kind: round(share, 3) for kind, share in shares.items()}, flush=True)


if __name__ == "__main__":
    typer.run(main)
