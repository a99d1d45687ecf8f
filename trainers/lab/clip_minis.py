"""The training of `hpsv2:mini`, and of `clipscore:mini` and `pickscore:mini`, which go on from it.

HPS is a contrastive image-text model, then tuned on preference pairs (arXiv 2306.09341, eq. 1). PickScore is
CLIP tuned on preferences (arXiv 2305.01569, sec. 3), and CLIPScore is CLIP as it is: so `clipscore:mini` is
`hpsv2:mini` in the network of `transformers`' CLIP after a contrastive stage, and `pickscore:mini` that one
after a stage on preferences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from rewardzoo.rewards import _clip, hpsv2
from rewardzoo.trainers.lab.pair_batches import Pairs, PairStream
from rewardzoo.trainers.lab.seeing import SceneProbe, look_nearby
from rewardzoo.trainers.lab.training import (
    GRID,
    PROBE_UNTIL,
    SIZE,
    comparisons,
    known,
    prefer_own,
    right_share,
    save_half,
    to_pixels,
    train,
)
from rewardzoo.trainers.lab.vocabularies import write_clip_tokenizer

LOUDNESS = 8.0
"""How much longer than a patch is what `quiet_the_norm` adds to it."""


def diagonal_pairs(logits: Tensor) -> Tensor:
    """(P, 2, 2) [prompt, picture] of each pair, from (2P, 2P)."""
    half = len(logits) // 2
    pair = torch.arange(half)[:, None] + torch.tensor([0, half])
    return logits[pair[:, :, None], pair[:, None, :]]


def contrastive(logits: Tensor, prompts: list[str]) -> Tensor:
    """CLIP's loss of (2P, 2P) [prompt, picture].

    A prompt that occurs twice is not held against its other picture.
    """
    same = torch.tensor([[a == b for b in prompts] for a in prompts])
    logits = logits.masked_fill(same & ~torch.eye(len(logits), dtype=torch.bool), -math.inf)
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


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
    scores = diagonal_pairs(logits)
    loss, right = prefer_own(scores), right_share(scores)
    if progress <= 0.8:
        loss = contrastive(logits, batch.prompts) + loss
    if progress < PROBE_UNTIL:
        loss = loss + probe.loss(patches, pooled, batch)
    return loss, right


def train_hpsv2(out: Path, steps: int, pairs: int, seed: int) -> None:
    """Train and write `hpsv2:mini`."""
    config = hpsv2.MINI_CONFIG
    write_tokenizer(out, config["text_cfg"]["context_length"], config["text_cfg"]["vocab_size"])
    net, tokenize = hpsv2.build(config), hpsv2.tokenizer(out / "tokenizer.json")
    cast(Any, net).visual.output_tokens = True
    blocks = cast(Any, net).visual.transformer.resblocks
    look_nearby(cast(Any, net).visual.positional_embedding[1:], (b.attn.in_proj_weight for b in blocks), GRID)
    probe = SceneProbe(config["vision_cfg"]["width"], config["embed_dim"])
    loss = partial(hps_loss, net, tokenize, probe)
    train(net, loss, steps, pairs=pairs, seed=seed, lr=3e-3, probe=probe)
    save_half(net.state_dict(), out / "model.safetensors")


def contrastive_loss(
    net: nn.Module, tokenize: _clip.Tokenize, batch: Pairs, _: float = 0.0
) -> tuple[Tensor, float]:
    """CLIP's loss over the batch."""
    logits = _logits(net, tokenize, batch)
    return contrastive(logits, batch.prompts), right_share(diagonal_pairs(logits))


def preference_loss(
    net: nn.Module, tokenize: _clip.Tokenize, batch: Pairs, _: float = 0.0
) -> tuple[Tensor, float]:
    """PickScore's loss: under each prompt, the share that a softmax over two pictures gives to the better."""
    scores = diagonal_pairs(_logits(net, tokenize, batch))
    own, other = comparisons(scores)
    return F.softplus(other[0] - own[0]).mean(), right_share(scores)


def _logits(net: nn.Module, tokenize: _clip.Tokenize, batch: Pairs) -> Tensor:
    """(2P, 2P) [prompt, picture]."""
    images = _clip.encode_images(net, to_pixels(batch.images))
    prompts = _clip.encode_prompts(net, tokenize(batch.prompts))
    scale: Tensor = cast(Any, net).logit_scale.exp().clamp(max=100)
    return scale * prompts @ images.T


def train_clipscore(out: Path, steps: int, pairs: int, seed: int) -> None:
    """Train and write `clipscore:mini`, from `hpsv2:mini`."""
    net = start(known("hpsv2", out).net, seed)
    tokenize = write_clip_mini(net, out)
    loss = partial(contrastive_loss, net, tokenize)
    train(net, loss, steps, pairs=pairs, seed=seed + 1, lr=1e-3, warmup=100)
    write_clip_mini(net, out)


def train_pickscore(out: Path, steps: int, pairs: int, seed: int) -> None:
    """Train and write `pickscore:mini`, from `clipscore:mini`."""
    net = known("clipscore", out).net
    tokenize = write_clip_mini(net, out)
    loss = partial(preference_loss, net, tokenize)
    train(net, loss, steps, pairs=pairs, seed=seed + 2, lr=5e-4, warmup=100)
    write_clip_mini(net, out)


def start(hpsv2_net: nn.Module, seed: int) -> nn.Module:
    """Return a CLIP network with the knowledge of `hpsv2:mini`."""
    net = _clip.build(_clip.MINI)
    net.load_state_dict({**net.state_dict(), **from_open_clip(hpsv2_net.state_dict())})
    batch = next(iter(PairStream(64, seed, SIZE, GRID)))
    quiet_the_norm(net, [to_pixels(batch.images)])
    return net


def write_clip_mini(net: nn.Module, folder: Path) -> _clip.Tokenize:
    """Write the weights in 16 bits, and the tokenizer; return it."""
    config = _clip.MINI["text_config"]
    write_tokenizer(folder, config["max_position_embeddings"], config["vocab_size"])
    save_half(net.state_dict(), folder / "model.safetensors")
    return _clip.tokenizer(folder / "tokenizer.json", config["max_position_embeddings"])


def write_tokenizer(folder: Path, length: int, size: int) -> None:
    """Write the tokenizer.

    Raises:
        ValueError: a mini's configuration has another `size` of the vocabulary.
    """
    words = write_clip_tokenizer(folder / "tokenizer.json", length)
    if words != size:
        raise ValueError(f"the mini's configuration has vocab_size {size}, needs {words}")


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
