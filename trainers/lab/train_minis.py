"""Train the mini rewards that ship in the package: `python -m rewardzoo.trainers.lab.train_minis`.

Each is trained as its big sister was, at a size for two CPU cores. HPS is a contrastive image-text model,
then tuned on preference pairs (arXiv 2306.09341, eq. 1); ImageReward learns to rank pairs under a prompt
(arXiv 2304.05977, eq. 1). A pair here is two scenes one attribute apart, each with its prompt and picture:
each picture is the better one under its own prompt, so every pair teaches both ways round. In place of
the big models' pre-training, the first half also teaches what is where (`SceneProbe`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import typer
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import rewardzoo.rewards
from rewardzoo.rewards import hpsv2, imagereward
from rewardzoo.rewards._images import normalize
from rewardzoo.trainers.lab import VOCABULARY, triples
from rewardzoo.trainers.lab.pair_batches import ImageBatch, Pairs, PairStream
from rewardzoo.trainers.lab.seeing import SceneProbe, look_nearby

SIZE = 64
GRID = 8  # patches a side, in both minis
PROBE_UNTIL = 0.5  # of the training
STRANGERS_UNTIL = 0.1
LR = 3e-3
OUT = Path(rewardzoo.rewards.__file__).parent / "minis"


def to_pixels(images: ImageBatch) -> Tensor:
    """Normalise uint8 (N, S, S, 3) as the rewards do: float32 (N, 3, S, S)."""
    return normalize(torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255))


def right_share(scores: Tensor) -> float:
    """Share of the prompts in (P, 2, 2) scores [prompt, picture] that score their own picture higher."""
    own = scores.diagonal(dim1=1, dim2=2)
    return (own > scores.flip(2).diagonal(dim1=1, dim2=2)).float().mean().item()


def prefer_own(scores: Tensor) -> Tensor:
    """Ranking loss of (P, 2, 2) scores [prompt, picture], by picture under each prompt and by prompt."""
    own = scores.diagonal(dim1=1, dim2=2)  # (P, 2)
    other_picture = scores.flip(2).diagonal(dim1=1, dim2=2)
    other_prompt = scores.flip(1).diagonal(dim1=1, dim2=2)
    return (F.softplus(other_picture - own) + F.softplus(other_prompt - own)).mean()


def hps_loss(
    net: Any,
    tokenize: Callable[[list[str]], Tensor],
    probe: SceneProbe,
    batch: Pairs,
    progress: float,
) -> tuple[Tensor, float]:
    """Contrastive over the batch; in the last fifth on preference pairs alone."""
    pooled, patches = net.visual(to_pixels(batch.images))
    images = F.normalize(pooled, dim=-1)
    prompts = net.encode_text(tokenize(batch.prompts), normalize=True)
    logits = net.logit_scale.exp().clamp(max=100) * prompts @ images.T  # (2P, 2P)
    half = len(logits) // 2
    pair = torch.arange(half)[:, None] + torch.tensor([0, half])  # (P, 2)
    scores = logits[pair[:, :, None], pair[:, None, :]]
    preference, right = prefer_own(scores), right_share(scores)
    if progress > 0.8:
        return preference, right
    same = torch.tensor([[a == b for b in batch.prompts] for a in batch.prompts])
    logits = logits.masked_fill(same & ~torch.eye(len(logits), dtype=torch.bool), -math.inf)
    target = torch.arange(len(logits))
    contrastive = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    loss = contrastive + preference
    if progress < PROBE_UNTIL:
        loss = loss + probe.loss(patches, pooled, batch)
    return loss, right


def imagereward_loss(
    net: imagereward.RankedBlip,
    encode: Callable[[list[str]], dict[str, Tensor]],
    probe: SceneProbe,
    batch: Pairs,
    progress: float,
) -> tuple[Tensor, float]:
    """Rank each prompt's picture over a stranger's to begin with, then over its partner's."""
    patches = net.vision_model(to_pixels(batch.images)).last_hidden_state  # (2P, 1 + G * G, D)
    text = encode(batch.prompts)
    own = torch.arange(len(patches))
    half = len(own) // 2
    with_strangers = progress < STRANGERS_UNTIL
    picture = torch.cat([own, own.roll(1 if with_strangers else half)])
    twice = {key: tensor.repeat(2, 1) for key, tensor in text.items()}
    own_scores, other_scores = net.score_patches(patches[picture], **twice).chunk(2)
    if with_strangers:
        loss = F.softplus(other_scores - own_scores).mean()
        right = (own_scores > other_scores).float().mean().item()
    else:
        first = torch.stack([own_scores[:half], other_scores[:half]], -1)
        second = torch.stack([other_scores[half:], own_scores[half:]], -1)
        scores = torch.stack([first, second], 1)  # (P, 2, 2) [prompt, picture]
        loss, right = prefer_own(scores), right_share(scores)
    if progress < PROBE_UNTIL:
        loss = loss + probe.loss(patches[:, 1:], patches[:, 0], batch)
    return loss, right


def make_optimizers(net: nn.Module, probe: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the encoders, AdamW for the rest."""
    hidden: list[nn.Parameter] = []
    rest = list(probe.parameters())
    for name, weight in net.named_parameters():
        inside = "resblocks" in name or "encoder.layer" in name
        (hidden if inside and weight.ndim == 2 else rest).append(weight)
    return [
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.05, betas=(0.9, 0.98)),
    ]


def _rate(steps: int, step: int) -> float:
    return min((step + 1) / 200, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def train(
    net: nn.Module,
    probe: SceneProbe,
    loss_of: Callable[[Pairs, float], tuple[Tensor, float]],
    cycles: Sequence[int],
    *,
    pairs: int,
    seed: int,
) -> None:
    """Train in cycles of so many steps, each with warm-up and cosine decay, from half the rate of the last.

    Every pair is seen once. Cycles after the first skip the part with the probe.
    """
    net.train().requires_grad_(True)
    for cycle, steps in enumerate(cycles):
        print(f"cycle {cycle + 1} of {len(cycles)}: {steps} steps")
        begin = PROBE_UNTIL if cycle else 0.0

        def loss(batch: Pairs, done: float, begin: float = begin) -> tuple[Tensor, float]:
            return loss_of(batch, begin + (1 - begin) * done)

        _train_cycle(net, probe, loss, steps, pairs, seed + cycle, LR / 2**cycle)
    net.eval()


def _train_cycle(
    net: nn.Module,
    probe: SceneProbe,
    loss_of: Callable[[Pairs, float], tuple[Tensor, float]],
    steps: int,
    pairs: int,
    seed: int,
    lr: float,
) -> None:
    data = PairStream(pairs, seed, SIZE, GRID)
    stream = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4))
    optimizers = make_optimizers(net, probe, lr)
    warmup = partial(_rate, steps)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, warmup) for optimizer in optimizers]
    won, started = 0.5, time.monotonic()
    for step in track(range(steps), description="training"):
        loss, right = loss_of(next(stream), step / steps)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*net.parameters(), *probe.parameters()], 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        won += 0.02 * (right - won)
        if step % 100 == 99:
            seconds = time.monotonic() - started
            print(
                f"step {step + 1}: loss {loss.item():.3f}, right {won:.3f}, {seconds:.0f} s",
                flush=True,
            )


def preference_accuracy(model: rewardzoo.rewards.RewardModel, n: int, seed: int) -> dict[str, float]:
    """Share of unseen in-domain triples whose right picture scores higher, by what is wrong and overall."""
    held = list(triples(n, seed, size=SIZE))
    prompts = [t.prompt for t in held]
    right = model.score([t.right for t in held], prompts)
    wrong = model.score([t.wrong for t in held], prompts)
    kinds = np.array([t.category for t in held])
    won = np.array(right) > np.array(wrong)
    shares = {str(kind): float(won[kinds == kind].mean()) for kind in sorted(set(kinds))}
    return {**shares, "overall": float(won.mean())}


def write_clip_tokenizer(path: Path, length: int) -> int:
    """Write a word tokenizer in CLIP's form, the end token's id the highest; return how many words it has."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["<pad>", "<unk>", "<start>", *VOCABULARY, "<end>"]
    ids = {word: i for i, word in enumerate(words)}
    own = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    own.normalizer = normalizers.Lowercase()
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[(word, ids[word]) for word in ("<start>", "<end>")],
    )
    own.enable_truncation(length)
    own.enable_padding(length=length, pad_id=0, pad_token="<pad>")
    own.save(str(path))
    return len(words)


def write_bert_vocabulary(path: Path) -> int:
    """Write a word-piece vocabulary of the lab's words; return its size."""
    words: Sequence[str] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *VOCABULARY]
    path.write_text("\n".join(words) + "\n")
    return len(words)


def train_hpsv2(out: Path, cycles: Sequence[int], pairs: int, seed: int) -> None:
    """Train and write `hpsv2:mini`."""
    config = hpsv2.MINI_CONFIG
    vocabulary = write_clip_tokenizer(out / "tokenizer.json", config["text_cfg"]["context_length"])
    if vocabulary != config["text_cfg"]["vocab_size"]:
        raise ValueError(
            f"hpsv2.MINI_CONFIG has vocab_size {config['text_cfg']['vocab_size']}, needs {vocabulary}"
        )
    net, tokenize = hpsv2.build(config), hpsv2.tokenizer(out / "tokenizer.json")
    cast(Any, net).visual.output_tokens = True
    blocks = cast(Any, net).visual.transformer.resblocks
    look_nearby(cast(Any, net).visual.positional_embedding[1:], (b.attn.in_proj_weight for b in blocks), GRID)
    probe = SceneProbe(config["vision_cfg"]["width"], config["embed_dim"])
    loss = partial(hps_loss, net, tokenize, probe)
    train(net, probe, loss, cycles, pairs=pairs, seed=seed)
    save_file(net.state_dict(), out / "model.safetensors")


def train_imagereward(out: Path, cycles: Sequence[int], pairs: int, seed: int) -> None:
    """Train and write `imagereward:mini`."""
    vocabulary = write_bert_vocabulary(out / "vocab.txt")
    if vocabulary != imagereward.MINI_CONFIG["text"]["vocab_size"]:
        raise ValueError(f"imagereward.MINI_CONFIG needs vocab_size {vocabulary}")
    net = imagereward.RankedBlip(imagereward.MINI_CONFIG)
    own = imagereward.tokenizer(out / "vocab.txt")
    layers = cast(Any, net.vision_model).encoder.layers
    places = cast(Any, net.vision_model).embeddings.position_embedding[0, 1:]
    look_nearby(places, (layer.self_attn.qkv.weight for layer in layers), GRID)
    width = imagereward.MINI_CONFIG["vision"]["hidden_size"]
    probe = SceneProbe(width, width)
    loss = partial(imagereward_loss, net, partial(imagereward.tokenize, own), probe)
    train(net, probe, loss, cycles, pairs=pairs, seed=seed)
    save_file(net.state_dict(), out / "model.safetensors")


TRAINERS = {"hpsv2": train_hpsv2, "imagereward": train_imagereward}
CYCLES: dict[str, tuple[int, ...]] = {"hpsv2": (3200,), "imagereward": (3000, 1500)}


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which minis; all by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to, one folder a reward.")] = OUT,
    steps: Annotated[
        int | None, typer.Option(help="Steps in one cycle, instead of the shipped schedule.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Pairs in a batch.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the weights and the scenes.")] = 0,
) -> None:
    """Train the mini rewards and print how often each prefers the right picture."""
    for name in names or TRAINERS:
        if name not in TRAINERS:
            raise typer.BadParameter(f"no mini {name!r}: there are {', '.join(TRAINERS)}")
        torch.manual_seed(seed)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        TRAINERS[name](folder, (steps,) if steps else CYCLES[name], pairs, seed)
        model = rewardzoo.rewards.load(f"{name}:mini", device="cpu", weights=folder)
        print(
            name,
            {k: round(v, 3) for k, v in preference_accuracy(model, 1000, seed=10_000 + seed).items()},
        )


if __name__ == "__main__":
    typer.run(main)
