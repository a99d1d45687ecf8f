"""The training of `vqascore:mini`, a small CLIP-FlanT5 that starts with the eyes of `clipscore:mini`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewardzoo.rewards import _clip
from rewardzoo.rewards._clip_t5 import ClipT5
from rewardzoo.rewards.vqascore import RECIPES
from rewardzoo.trainers.lab.pair_batches import Pairs
from rewardzoo.trainers.lab.seeing import ReadingProbe
from rewardzoo.trainers.lab.statements import VerdictProbe
from rewardzoo.trainers.lab.training import (
    READING_UNTIL,
    known,
    pictures_to_judge,
    rank_pictures,
    save_half,
    to_pixels,
    train,
)
from rewardzoo.trainers.lab.vocabularies import write_t5_vocabulary

T5: Mapping[str, Any] = {
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 192,
    "num_layers": 4,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 64,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
}
QUESTION = RECIPES["vqascore/clip-flant5"].question


class T5Probes(nn.Module):
    """What is read off the encoder of a CLIP-FlanT5 while it learns: see the two probes."""

    def __init__(self, net: ClipT5) -> None:
        super().__init__()
        pieces = [net.pieces.id_to_piece(i) for i in range(net.pieces.get_piece_size())]
        words = {piece[1:]: i for i, piece in enumerate(pieces) if piece.startswith("\u2581")}
        _, second, *_, last = net.encoder.block
        tokens, width = net.shared.weight.shape
        self.reading = ReadingProbe(width, tokens, words, places=second, counts=second)
        self.verdicts = VerdictProbe(width, self.reading, last)


def vqascore_loss(net: ClipT5, probes: T5Probes, batch: Pairs, progress: float) -> tuple[Tensor, float]:
    """Ask whether a picture shows a prompt: its own, and a stranger's to begin with, then its partner's."""
    n = len(batch.prompts)
    picture = pictures_to_judge(n, progress)
    questions = [net.question_ids(QUESTION.format(prompt)) for prompt in batch.prompts] * 2
    answers = [net.encode("Yes")] * n + [net.encode("No")] * n
    inputs = net.collate([*to_pixels(batch.images)], picture.tolist(), questions, answers)
    chance = net(inputs).square().clamp(1e-6, 1 - 1e-6)  # of two tokens, the second of which is sure to come
    yes, no = chance.logit().chunk(2)
    ranked, right = rank_pictures(torch.cat([yes, -no]), progress)
    loss = ranked - chance.log().mean()
    if progress < READING_UNTIL:
        loss = loss + probes.reading.loss(inputs["input_ids"], picture, batch)
        loss = loss + probes.verdicts.loss(inputs["input_ids"], picture, batch.prompts)
    return loss, right


def train_vqascore(out: Path, steps: int, pairs: int, seed: int) -> None:
    """Train and write `vqascore:mini`, which answers with Yes or No."""
    folder = out / "checkpoint"
    folder.mkdir(exist_ok=True)
    config = {**T5, "vocab_size": write_t5_vocabulary(out / "spiece.model")}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    net = ClipT5(config, _clip.MINI["vision_config"], out / "spiece.model")
    eyes, name = known("clipscore", out).net.state_dict(), "vision_model."
    net.vision_tower.load_state_dict({k.removeprefix(name): eyes[k] for k in eyes if k.startswith(name)})
    for part in (net.encoder, net.decoder, net.vision_tower):
        part.set_attn_implementation("eager")  # as in `train_hpsv3`
    probes = T5Probes(net)
    loss = partial(vqascore_loss, net, probes)
    train(net, loss, steps, pairs=pairs, seed=seed, lr=2e-3, probe=probes, half=True, relations=0.3)
    save_half(net.state_dict(), folder / "model.safetensors")
