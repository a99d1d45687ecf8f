"""How the mini rewards are trained: one loop, the losses they share, and how well they choose."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import rewardzoo.rewards
from rewardzoo.rewards import RewardModel
from rewardzoo.rewards._images import normalize
from rewardzoo.trainers.lab import triples
from rewardzoo.trainers.lab.pair_batches import ImageBatch, Pairs, PairStream

SIZE = 64
GRID = 8  # patches a side, in all minis
PROBE_UNTIL = 0.5  # of the training
READING_UNTIL = 0.8
STRANGERS_UNTIL = 0.1
OUT = Path(rewardzoo.rewards.__file__).parent / "minis"
Loss = Callable[[Pairs, float], tuple[Tensor, float]]
"""From a batch and how much of the training is done: the loss, and the share of pairs told right."""


def to_pixels(images: ImageBatch) -> Tensor:
    """Normalise uint8 (N, S, S, 3) as the rewards do: float32 (N, 3, S, S)."""
    return normalize(torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255))


def pictures_to_judge(n: int, progress: float) -> Tensor:
    """Which picture each of N prompts, twice over, is read with: its own, then another's (2N,).

    The other is a stranger's to begin with, which is easy, and then its partner's.
    """
    own = torch.arange(n)
    return torch.cat([own, own.roll(1 if progress < STRANGERS_UNTIL else n // 2)])


def by_pair(values: Tensor) -> Tensor:
    """Turn 2N values, in the order of `pictures_to_judge` with partners, into (P, 2, 2) [prompt, picture]."""
    own, other = values.chunk(2)
    (first, second), (first_other, second_other) = own.chunk(2), other.chunk(2)
    return torch.stack([torch.stack([first, first_other], -1), torch.stack([second_other, second], -1)], 1)


def comparisons(values: Tensor) -> tuple[Tensor, Tensor]:
    """What belongs together and what it is held against, both (2, P, 2), in (P, 2, 2) [prompt, picture].

    First each prompt's own picture against the other picture, then each picture's own prompt against the
    other prompt.
    """
    own = values.diagonal(dim1=1, dim2=2)
    others = [values.flip(side).diagonal(dim1=1, dim2=2) for side in (2, 1)]
    return torch.stack([own, own]), torch.stack(others)


def prefer_own(scores: Tensor) -> Tensor:
    """Ranking loss of (P, 2, 2) scores [prompt, picture], by picture under each prompt and by prompt."""
    own, other = comparisons(scores)
    return F.softplus(other - own).mean()


def right_share(scores: Tensor) -> float:
    """Share of the prompts in (P, 2, 2) scores [prompt, picture] that score their own picture higher."""
    own, other = comparisons(scores)
    return (own[0] > other[0]).float().mean().item()


def rank_pictures(values: Tensor, progress: float) -> tuple[Tensor, float]:
    """Rank each prompt's picture over a stranger's to begin with, then as `prefer_own`: loss, share right.

    `values` (2N,) are in the order of `pictures_to_judge`.
    """
    if progress < STRANGERS_UNTIL:
        own, other = values.chunk(2)
        return F.softplus(other - own).mean(), (own > other).float().mean().item()
    scores = by_pair(values)
    return prefer_own(scores), right_share(scores)


def make_optimizers(net: nn.Module, probe: nn.Module | None, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the encoders' and decoders' layers, AdamW for the rest."""
    layers = ("resblocks.", "layer.", "layers.", "block.", "blocks.")
    hidden: list[nn.Parameter] = []
    rest = [] if probe is None else list(probe.parameters())
    for name, weight in net.named_parameters():
        inside = any(part in name for part in layers) and "relative_attention_bias" not in name
        (hidden if inside and weight.ndim == 2 else rest).append(weight)
    return [
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.05, betas=(0.9, 0.98)),
    ]


def half_multiplies() -> bool:
    """Whether this processor multiplies in bfloat16, in half the time."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def train(
    net: nn.Module,
    loss_of: Loss,
    steps: int,
    *,
    pairs: int,
    seed: int,
    lr: float,
    warmup: int = 200,
    probe: nn.Module | None = None,
    half: bool = False,
    relations: float = 0.0,
) -> None:
    """Train with warm-up and cosine decay; every pair is seen once.

    `probe` is trained with `net`. With `half` matrices are multiplied in bfloat16 where the processor can:
    in half the time. The net stays as it is when it scores, without dropout: no pair comes twice.
    """
    net.eval().requires_grad_(True)
    data = PairStream(pairs, seed, SIZE, GRID, relations)
    stream = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4))
    optimizers = make_optimizers(net, probe, lr)
    weights = [weight for o in optimizers for group in o.param_groups for weight in group["params"]]
    half = half and half_multiplies()
    won, started = 0.5, time.monotonic()
    for step in track(range(steps), description="training"):
        rate = lr * min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        batch = next(stream)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, right = loss_of(batch, step / steps)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        won += 0.02 * (right - won)
        if step % 100 == 99:
            seconds = time.monotonic() - started
            print(
                f"step {step + 1}: loss {loss.item():.3f}, right {won:.3f}, {seconds:.0f} s, "
                f"{time.process_time():.0f} s of processor time",
                flush=True,
            )
    net.requires_grad_(False)


def preference_accuracy(model: RewardModel, n: int, seed: int) -> dict[str, float]:
    """Share of unseen in-domain triples whose right picture scores higher, by what is wrong and overall."""
    held = list(triples(n, seed, size=SIZE))
    prompts = [t.prompt for t in held]
    right = model.score([t.right for t in held], prompts)
    wrong = model.score([t.wrong for t in held], prompts)
    kinds = np.array([t.category for t in held])
    won = np.array(right) > np.array(wrong)
    shares = {str(kind): float(won[kinds == kind].mean()) for kind in sorted(set(kinds))}
    return {**shares, "overall": float(won.mean())}


def known(name: str, out: Path) -> RewardModel:
    """Load a mini to start from: the one beside `out`, where it was trained there, else the shipped one."""
    beside = out.parent / name
    weights = beside if beside.is_dir() else None
    return rewardzoo.rewards.load(f"{name}:mini", device="cpu", weights=weights)


def save_half(state: Mapping[str, Tensor], path: Path) -> None:
    """Write weights in 16 bits: a reward makes 32 of them."""
    save_file({key: weight.half().contiguous() for key, weight in state.items()}, path)
