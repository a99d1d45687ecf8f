"""The training of the mini generator's VQ model, which turns a picture of the lab into 64 tokens and back.

`JanusVQVAE.forward` passes no gradient from the pixels to the encoder, so the loop is our own: an autoencoder
first, then a codebook of its latents by k-means, then both together with straight-through gradients. Latents
and codes have length 1, as in `JanusVQVAE.decode`; so its `encode` finds the same codes but for near ties.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.models.janus.modeling_janus import JanusVQVAE

from rewardzoo.trainers.lab.pair_batches import KINDS
from rewardzoo.trainers.lab.prompts import prompt_of
from rewardzoo.trainers.lab.render import render
from rewardzoo.trainers.lab.scene import sample_scene
from rewardzoo.trainers.lab.scene_images import GRID, SIZE, SceneImageStream, to_channels
from rewardzoo.trainers.lab.training import half_multiplies
from rewardzoo.trainers.lab.verdict import judge

WARMUP = 0.12  # of the training: an autoencoder without codes
REVIVE_UNTIL = 0.75  # of the training: codes that go unused are moved
REVIVE_EVERY = 50  # steps
COMMITMENT = 0.25


def to_range(images: Tensor) -> Tensor:
    """Scale uint8 pixels to float32 in [-1, 1], which Janus' VQ model reads and writes."""
    return images.float().div(127.5).sub(1)


def to_images(pixels: Tensor) -> NDArray[np.uint8]:
    """Turn pixels (B, 3, H, W) in [-1, 1] into uint8 (B, H, W, 3)."""
    images = pixels.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).numpy()


def latents(vq: JanusVQVAE, pixels: Tensor) -> Tensor:
    """Encode pixels (B, 3, S, S) to latents of length 1, float32 (B, D, G, G)."""
    return F.normalize(vq.quant_conv(vq.encoder(pixels)).float(), dim=1)


def codes(vq: JanusVQVAE) -> Tensor:
    """Give the codebook (K, D), every code of length 1."""
    return F.normalize(vq.quantize.embedding.weight, dim=1)


@torch.inference_mode()
def encode(vq: JanusVQVAE, images: Tensor, batch: int = 64) -> Tensor:
    """Turn uint8 pictures (B, 3, S, S) into tokens int64 (B, G * G)."""
    tokens = []
    for part in torch.split(images, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=half_multiplies()):
            z = latents(vq, to_range(part))
        tokens.append((z.flatten(2).transpose(1, 2) @ codes(vq).T).argmax(-1))
    return torch.cat(tokens).clone()


def picture_loss(drawn: Tensor, target: Tensor, edges: float = 0.0) -> Tensor:
    """Error of pixels (B, 3, S, S) in [-1, 1] with the most weight where a picture says something.

    Objects and their surroundings (2 pixels) weigh five times as much as the background, their `edges` by so
    much more, and differences between channels, which the judge segments by, twice as much as brightness.
    """
    saturation = target.amax(1, keepdim=True) - target.amin(1, keepdim=True)
    colored = (saturation > 0.3).float()
    near = F.max_pool2d(colored, 5, stride=1, padding=2)
    inside = 1 - F.max_pool2d(1 - colored, 3, stride=1, padding=1)
    weight = 1 + 4 * near + edges * (near - inside)
    off = drawn - target
    grey = off.mean(1, keepdim=True)
    error = torch.cat([grey, 2 * (off - grey)], 1)
    return ((error.square() + 0.5 * error.abs()) * weight).mean()


@torch.no_grad()
def k_means(points: Tensor, k: int, rounds: int = 20) -> Tensor:
    """Cluster points of length 1 (N, D) by cosine: centers (k, D), none of them without a point."""
    centers = points[torch.randperm(len(points))[:k]]
    for _ in range(rounds):
        nearest = (points @ centers.T).argmax(1)
        members = torch.bincount(nearest, minlength=k)
        centers = F.normalize(torch.zeros_like(centers).index_add_(0, nearest, points), dim=1)
        unused = members == 0
        centers[unused] = points[torch.randint(len(points), (int(unused.sum()),))]
    return centers


class Quantized(NamedTuple):
    """Codes in place of latents (B, N, D), the `tokens` (B, N) that they are, and the codebook's loss."""

    codes: Tensor
    tokens: Tensor
    loss: Tensor


def quantize(z: Tensor, book: Tensor) -> Quantized:
    """Replace latents (B, N, D) by the nearest of codes (K, D); gradients pass straight through to `z`."""
    tokens = (z @ book.T).argmax(-1)
    chosen = book[tokens]
    loss = F.mse_loss(chosen, z.detach()) + COMMITMENT * F.mse_loss(z, chosen.detach())
    return Quantized(z + (chosen - z).detach(), tokens, loss * z.shape[-1])


class ConvolutionalMuon:
    """Muon for convolutions, as matrices of outputs by all that they see, and AdamW for the rest."""

    def __init__(self, weights: Sequence[nn.Parameter], lr: float) -> None:
        self.weights = weights
        self.kernels = [weight for weight in weights if weight.ndim == 4 and min(weight.shape[:2]) > 3]
        self.flat = [nn.Parameter(weight.detach().flatten(1)) for weight in self.kernels]  # the same memory
        held = {id(weight) for weight in self.kernels}
        rest = [weight for weight in weights if id(weight) not in held]
        self.rates = (3 * lr, lr)
        self.optimizers = (
            torch.optim.Muon(self.flat, lr=3 * lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=lr, weight_decay=1e-4, betas=(0.9, 0.98)),
        )

    def step(self, scale: float) -> None:
        """Take a step at `scale` times the learning rates, and forget the gradients."""
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        for matrix, weight in zip(self.flat, self.kernels, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
        for weight in self.weights:
            weight.grad = None


def train_vq(vq: JanusVQVAE, steps: int, *, batch: int = 8, seed: int = 0, lr: float = 2e-3) -> None:
    """Train on fresh in-domain pictures, each seen once, to draw them without their noise."""
    vq.train().requires_grad_(True)
    size = vq.config.num_embeddings
    # Thrown away afterwards: it makes codes tell what they are part of, which a picture's error alone does
    # not, and which the language model has to know.
    probe = nn.Linear(vq.config.embed_dim, len(KINDS) + 1)
    optimizer = ConvolutionalMuon([*vq.parameters(), *probe.parameters()], lr)
    pictures = SceneImageStream(batch, seed)
    stream = iter(DataLoader(pictures, batch_size=None, num_workers=1, prefetch_factor=4))
    half = partial(torch.autocast, "cpu", torch.bfloat16, enabled=half_multiplies())
    recent: deque[Tensor] = deque(maxlen=4 * size // (batch * GRID * GRID) + 2)
    usage = torch.zeros(size)
    started, with_codes = time.monotonic(), round(WARMUP * steps)
    for step in track(range(steps), description="VQ"):
        images = next(stream)
        with half():
            z = latents(vq, to_range(images.noisy)).flatten(2).transpose(1, 2)  # (B, G * G, D)
        recent.append(z.detach().flatten(0, 1))
        seen, loss = z, z.new_zeros(())
        if step == with_codes:
            with torch.no_grad():
                vq.quantize.embedding.weight.copy_(k_means(torch.cat([*recent]), size))
        if step >= with_codes:
            seen, tokens, loss = quantize(z, codes(vq))
            usage += torch.bincount(tokens.flatten(), minlength=size)
        with half():
            # Contiguous: fed with channels last, a decoder trains half as fast in bfloat16.
            grid = seen.transpose(1, 2).reshape(len(seen), -1, GRID, GRID).contiguous()
            drawn = vq.decoder(vq.post_quant_conv(grid))
        kinds = F.cross_entropy(4 * probe(seen).flatten(0, 1), images.cells.flatten())
        error = picture_loss(drawn.float(), to_range(images.clean))
        (4 * loss + error + 0.05 * kinds).backward()  # type: ignore[no-untyped-call]
        optimizer.step(min((step + 1) / 30, 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps))))
        if step % 100 == 99:
            right = reconstruction_accuracy(vq, 64, seed + 1) if step >= with_codes else math.nan
            vq.train()
            print(
                f"VQ step {step + 1}: error {error.item():.4f}, kinds {kinds.item():.3f}, codes "
                f"{loss.item():.3f}, used {int((usage > 0).sum())}, judged right {right:.3f}, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
        if step >= with_codes and step % REVIVE_EVERY == REVIVE_EVERY - 1:
            if step < REVIVE_UNTIL * steps:
                revive(vq, usage, torch.cat([*recent]))
            usage.zero_()
    with torch.no_grad():
        vq.quantize.embedding.weight.copy_(codes(vq))
    vq.train(False).requires_grad_(False)


def sharpen(vq: JanusVQVAE, steps: int, *, batch: int = 8, seed: int = 0, lr: float = 1e-3) -> None:
    """Train the decoder alone, on the tokens as they are, with an eye on the edges of what is small."""
    vq.train(False).requires_grad_(False)
    parts = nn.ModuleList([vq.post_quant_conv, vq.decoder]).requires_grad_(True)
    optimizer = ConvolutionalMuon([*parts.parameters()], lr)
    pictures = SceneImageStream(batch, seed)
    stream = iter(DataLoader(pictures, batch_size=None, num_workers=1, prefetch_factor=4))
    for step in track(range(steps), description="decoder"):
        images = next(stream)
        tokens: Any = encode(vq, images.noisy)
        with torch.autocast("cpu", torch.bfloat16, enabled=half_multiplies()):
            drawn = vq.decode(tokens)
        picture_loss(drawn.float(), to_range(images.clean), edges=6.0).backward()  # type: ignore[no-untyped-call]
        optimizer.step(min((step + 1) / 20, 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * step / steps))))
    vq.requires_grad_(False)


@torch.no_grad()
def revive(vq: JanusVQVAE, usage: Tensor, points: Tensor) -> None:
    """Move the codes that were not used to latents (N, D) drawn at random."""
    unused = usage == 0
    vq.quantize.embedding.weight[unused] = points[torch.randint(len(points), (int(unused.sum()),))]


@torch.inference_mode()
def reconstruct(vq: JanusVQVAE, images: NDArray[np.uint8], batch: int = 64) -> NDArray[np.uint8]:
    """Turn pictures, uint8 (B, S, S, 3), into tokens and back."""
    tokens: Any = encode(vq, to_channels(images), batch)
    return np.concatenate([to_images(vq.decode(part)) for part in tokens.split(batch)])


def reconstruction_accuracy(vq: JanusVQVAE, n: int, seed: int) -> float:
    """Share of `n` fresh in-domain pictures that the exact judge finds right after `reconstruct`."""
    vq.train(False)
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(n)]
    drawn = reconstruct(vq, np.stack([render(scene, rng, SIZE) for scene in scenes]))
    right = [judge(image, prompt_of(scene)).correct for image, scene in zip(drawn, scenes, strict=True)]
    return sum(right) / n
