"""The training of `hpsv3:mini`, a Qwen2-VL as small as the lab, and where `orm` and `parm` may start from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import rewardzoo.rewards
from rewardzoo.rewards._vlm import Turn, VisionLanguageModel, read_images
from rewardzoo.rewards.hpsv3 import INSTRUCTION, RatedVLM, to_upstream
from rewardzoo.trainers.lab.pair_batches import ImageBatch, Pairs
from rewardzoo.trainers.lab.seeing import ReadingProbe, SceneProbe, look_around
from rewardzoo.trainers.lab.statements import VerdictProbe
from rewardzoo.trainers.lab.training import (
    GRID,
    PROBE_UNTIL,
    READING_UNTIL,
    SIZE,
    pictures_to_judge,
    rank_pictures,
    save_half,
    to_pixels,
    train,
)
from rewardzoo.trainers.lab.vocabularies import qwen_tokenizer

MERGED = 2  # patches a side that become one token
TEXT: Mapping[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.06,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [4, 6, 6]},
}
VISION: Mapping[str, Any] = {
    "depth": 3,
    "embed_dim": 96,
    "hidden_size": 128,
    "num_heads": 4,
    "mlp_ratio": 3,
    "patch_size": SIZE // GRID,
    "spatial_merge_size": MERGED,
    "initializer_range": 0.06,
    "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0},
}
"""What differs from Qwen2-VL-7B: sizes, and places that turn faster, as texts and grids are short."""


def build(folder: Path) -> VisionLanguageModel:
    """Build a Qwen2-VL with weights drawn anew; write its configuration, tokenizer and preprocessing."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

    tokenizer = qwen_tokenizer()
    names = ("image", "video", "vision_start", "vision_end")
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokens: Any = tokenizer.convert_tokens_to_ids(list(marks))
    marked: Any = {f"{name}_token_id": token for name, token in zip(names, tokens, strict=True)}
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=dict(VISION),
        tie_word_embeddings=True,
        **marked,
    )
    pixels = {"shortest_edge": SIZE * SIZE, "longest_edge": SIZE * SIZE}
    processor: Any = Qwen2VLImageProcessorPil(patch_size=SIZE // GRID, merge_size=MERGED, size=pixels)
    for part in (config, tokenizer, processor):
        part.save_pretrained(folder)
    model: Any = Qwen2VLForConditionalGeneration(config)
    return VisionLanguageModel(model, tokenizer, read_images(folder, model))


def to_patches(images: ImageBatch) -> Tensor:
    """What Qwen's preprocessing makes of uint8 (N, S, S, 3): float32 (N, G * G, 3 * 2 * p * p).

    Patches that are merged stand together; each is two equal frames.
    """
    side, patch = GRID // MERGED, SIZE // GRID
    cut = to_pixels(images).view(-1, 3, side, MERGED, patch, side, MERGED, patch)
    ordered = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (N, row, column, row in it, column in it, 3, p, p)
    frames = ordered[..., None, :, :].expand(*ordered.shape[:-2], 2, patch, patch)
    return frames.reshape(len(images), GRID * GRID, -1)


def row_by_row(patches: Tensor) -> Tensor:
    """Bring patches (N, G * G, D) from the order of `to_patches` into that of a picture's rows."""
    side = GRID // MERGED
    cut = patches.view(len(patches), side, side, MERGED, MERGED, -1)
    return cut.transpose(2, 3).reshape(patches.shape)


class QwenProbes(nn.Module):
    """What is read off a Qwen2-VL while it learns: patches, then words; see the three probes."""

    def __init__(self, vlm: VisionLanguageModel) -> None:
        super().__init__()
        core = vlm.model.model
        layers, width = core.language_model.layers, core.config.text_config.hidden_size
        words = vlm.tokenizer.get_vocab()
        self.scene = SceneProbe(core.config.vision_config.embed_dim, width)
        self.reading = ReadingProbe(width, len(words), words, places=layers[1], counts=layers[2])
        self.verdicts = VerdictProbe(width, self.reading, layers[-1])
        core.visual.blocks[-1].register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self._patches = output

    def loss(self, features: Tensor, ids: Tensor, picture: Tensor, batch: Pairs, progress: float) -> Tensor:
        """Loss of what was just read: image tokens (N, T, D), texts (B, L) with the pictures (B,) shown."""
        loss = features.new_zeros(())
        if progress < PROBE_UNTIL:
            patches = row_by_row(self._patches.view(len(features), GRID * GRID, -1))
            loss = loss + self.scene.contents(patches, features.mean(1), batch)
        if progress < READING_UNTIL:
            loss = loss + self.reading.loss(ids, picture, batch)
            loss = loss + self.verdicts.loss(ids, picture, batch.prompts)
        return loss


def hpsv3_loss(net: RatedVLM, probes: QwenProbes, batch: Pairs, progress: float) -> tuple[Tensor, float]:
    """Rank each prompt's picture over a stranger's to begin with, then over its partner's."""
    vlm, n = net.vlm, len(batch.prompts)
    grid = torch.tensor([1, GRID, GRID])
    images = [{"pixel_values": patches, "image_grid_thw": grid} for patches in to_patches(batch.images)]
    chats = [vlm.chat([Turn("user", INSTRUCTION.format(text_prompt=p), image=True)]) for p in batch.prompts]
    inputs = vlm.collate(images, range(n), chats)
    features = vlm.encode_images(inputs)
    picture = pictures_to_judge(n, progress)
    twice = {
        "input_ids": inputs["input_ids"].repeat(2, 1),
        "attention_mask": inputs["attention_mask"].repeat(2, 1),
        "position_ids": inputs["position_ids"].repeat(1, 2, 1),
        "feature_index": torch.arange(len(features)).view(n, -1)[picture].flatten(),
    }
    hidden = vlm.hidden_states(twice, features)
    values = net.rm_head(hidden[twice["input_ids"] == net.reward_token])[:, 0]
    loss, right = rank_pictures(values, progress)
    seen = features.view(n, -1, features.shape[-1])
    return loss + probes.loss(seen, twice["input_ids"], picture, batch, progress), right


def train_hpsv3(out: Path, steps: int, pairs: int, seed: int) -> None:
    """Train and write `hpsv3:mini`: it ranks pairs under a prompt (arXiv 2508.03789, sec. 4)."""
    vlm = build(out / "processor")
    # With PyTorch's fused attention a step takes 1.6 times as long on a CPU.
    vlm.model.set_attn_implementation("eager")
    visual = vlm.model.model.visual
    look_around((block.attn.qkv.bias for block in visual.blocks), visual.rotary_pos_emb.inv_freq)
    net, probes = RatedVLM(vlm), QwenProbes(vlm)
    loss = partial(hpsv3_loss, net, probes)
    train(net, loss, steps, pairs=pairs, seed=seed, lr=2e-3, probe=probes, half=True, relations=0.3)
    save_half(to_upstream(net), out / "model.safetensors")


def write_base(folder: Path) -> None:
    """Write the Qwen2-VL in `hpsv3:mini` as `transformers` does, for `orm` and `parm` to start from."""
    vlm = cast(RatedVLM, rewardzoo.rewards.load("hpsv3:mini", device="cpu").net).vlm
    words, width = vlm.model.get_input_embeddings().weight.shape
    vlm.model.lm_head = nn.Linear(width, words, bias=False)
    vlm.model.tie_weights()
    for part in (vlm.model, vlm.tokenizer, vlm.images.processor):
        part.save_pretrained(folder)
