"""The training of `imagereward:mini` and `blipvqa:mini`, which see with the eyes of `hpsv2:mini`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer
from torch import Tensor, nn

import rewardzoo.rewards
from rewardzoo.rewards import blipvqa, imagereward
from rewardzoo.trainers.lab.pair_batches import Pairs
from rewardzoo.trainers.lab.seeing import ReadingProbe, SceneProbe, blip_vision_from_clip
from rewardzoo.trainers.lab.statements import false_elsewhere
from rewardzoo.trainers.lab.training import (
    PROBE_UNTIL,
    READING_UNTIL,
    known,
    pictures_to_judge,
    rank_pictures,
    save_half,
    to_pixels,
    train,
)
from rewardzoo.trainers.lab.vocabularies import write_bert_vocabulary


def imagereward_loss(
    net: imagereward.RankedBlip,
    encode: Callable[[list[str]], dict[str, Tensor]],
    seeing: SceneProbe,
    reading: ReadingProbe,
    batch: Pairs,
    progress: float,
) -> tuple[Tensor, float]:
    """Rank each prompt's picture over a stranger's to begin with, then over its partner's."""
    patches = net.vision_model(to_pixels(batch.images)).last_hidden_state  # (2P, 1 + G * G, D)
    twice = {key: tensor.repeat(2, 1) for key, tensor in encode(batch.prompts).items()}
    picture = pictures_to_judge(len(patches), progress)
    values = net.score_patches(patches[picture], **twice)
    loss, right = rank_pictures(values, progress)
    if progress < PROBE_UNTIL:
        loss = loss + seeing.loss(patches[:, 1:], patches[:, 0], batch)
    if progress < READING_UNTIL:
        loss = loss + reading.loss(twice["input_ids"], picture, batch)
    return loss, right


def train_imagereward(out: Path, steps: int, pairs: int, seed: int) -> None:
    """Train and write `imagereward:mini`: it ranks pairs under a prompt (arXiv 2304.05977, eq. 1)."""
    check_vocabulary(write_bert_vocabulary(out / "vocab.txt"), imagereward.MINI_CONFIG)
    net = imagereward.RankedBlip(imagereward.MINI_CONFIG)
    own = imagereward.tokenizer(out / "vocab.txt")
    see_as_hpsv2(net.vision_model, out)
    width = imagereward.MINI_CONFIG["vision"]["hidden_size"]
    seeing, reading = SceneProbe(width, width), probe_text(net.text_encoder, own)
    loss = partial(imagereward_loss, net, partial(imagereward.tokenize, own), seeing, reading)
    probe = nn.ModuleList([seeing, reading])
    train(net, loss, steps, pairs=pairs, seed=seed, lr=2e-3, probe=probe, half=True, relations=0.3)
    save_half(net.state_dict(), out / "model.safetensors")


def blipvqa_loss(
    model: blipvqa.BlipVQA, reading: ReadingProbe, batch: Pairs, progress: float
) -> tuple[Tensor, float]:
    """Ask for each statement that another picture makes false: of that picture, and of the prompt's own."""
    own, other, phrases = zip(*false_elsewhere(batch, progress), strict=True)
    inputs = model.collate([*to_pixels(batch.images)], own + other, [(phrase,) for phrase in phrases] * 2)
    yes, no = model.logits(inputs)[inputs["slots"][:, 0]].float().unbind(1)
    should, should_not = (yes - no).chunk(2)
    loss = (F.softplus(-should).mean() + F.softplus(should_not).mean()) / 2
    if progress < READING_UNTIL:
        loss = loss + reading.loss(inputs["input_ids"], inputs["asked_of"], batch)
    return loss, (should > should_not).float().mean().item()


def train_blipvqa(out: Path, steps: int, pairs: int, seed: int) -> None:
    """Train and write `blipvqa:mini`, which answers questions about pictures with yes or no."""
    words = write_bert_vocabulary(out / "vocab.txt", more=("yes", "no", "?"))
    check_vocabulary(words + 2, blipvqa.MINI_CONFIG)  # [DEC] and [ENC] come behind
    net = blipvqa.build(blipvqa.MINI_CONFIG)
    see_as_hpsv2(net.vision_model, out)
    save_half(net.state_dict(), out / "model.safetensors")
    model = cast(blipvqa.BlipVQA, rewardzoo.rewards.load("blipvqa:mini", device="cpu", weights=out))
    reading = probe_text(cast(Any, model.net).text_encoder, model.tokenizer)
    loss = partial(blipvqa_loss, model, reading)
    train(model.net, loss, steps, pairs=pairs, seed=seed, lr=2e-3, probe=reading, half=True, relations=0.3)
    save_half(model.net.state_dict(), out / "model.safetensors")


def probe_text(encoder: Any, tokenizer: Tokenizer) -> ReadingProbe:
    """Probe BLIP's text encoder: places are known after the first layer, counts after the second."""
    first, second, *_ = encoder.encoder.layer
    config = encoder.config
    return ReadingProbe(
        config.hidden_size, config.vocab_size, tokenizer.get_vocab(), places=first, counts=second
    )


def see_as_hpsv2(vision: nn.Module, out: Path) -> None:
    """Give a BLIP vision tower the weights of `hpsv2:mini`'s."""
    vision.load_state_dict(blip_vision_from_clip(known("hpsv2", out).net.state_dict()))


def check_vocabulary(words: int, config: Any) -> None:
    """Hold a mini's configuration to the vocabulary that was written.

    Raises:
        ValueError: it has another size.
    """
    if config["text"]["vocab_size"] != words:
        raise ValueError(f"MINI_CONFIG has vocab_size {config['text']['vocab_size']}, needs {words}")
