"""The lab's mini generator: Janus, with `transformers`' classes, of a size for a laptop; and its training.

The language model reads captions and writes the tokens of pictures. The side of Janus that understands
pictures, vision tower, its aligner and text head, is there because the class asks for it: tiny and untrained.
"""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from rich.progress import track
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from rewardzoo.trainers.lab.captions import CORRUPTED, TokenizedScenes, caption_of, shuffled_batches
from rewardzoo.trainers.lab.scene_images import GRID, SIZE
from rewardzoo.trainers.lab.seeing import SceneProbe
from rewardzoo.trainers.lab.training import half_multiplies
from rewardzoo.trainers.lab.vocabularies import janus_tokenizer
from rewardzoo.trainers.lab.vq import codes

TOKENS = GRID * GRID
GUIDANCE_SCALE = 1.5
TEMPERATURE = 1.0
UNCONDITIONAL = 0.1
"""Share of captions left out in training, which guidance needs."""

PROBE_UNTIL = 0.7  # of the training
TRUE_UNTIL = 0.72
"""Until then captions are true: counts take long to learn, and much longer where captions may be wrong."""


def janus_config(*, hidden: int = 128, layers: int = 5, heads: int = 4, num_codes: int = 1024) -> JanusConfig:
    """Configure a generator of 64x64 pictures in 8x8 tokens; the defaults are what ships."""
    tokenizer: Any = janus_tokenizer()
    return JanusConfig(
        vision_config=JanusVisionConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=SIZE,
            patch_size=SIZE // GRID,
            projection_dim=hidden,
            mlp_ratio=1,
            num_image_tokens=TOKENS,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=16,
            num_embeddings=num_codes,
            latent_channels=64,
            base_channels=32,
            channel_multiplier=[1, 1, 2, 3],
            num_res_blocks=1,
            projection_dim=hidden,
            image_token_embed_dim=hidden,
            num_patches=GRID,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=128,
            # The second pair of each head turns once a row of the picture, so rows are easy to tell.
            rope_parameters={"rope_type": "default", "rope_theta": (4 / math.pi) ** (hidden / heads / 2)},
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
    )


def build(config: JanusConfig) -> JanusForConditionalGeneration:
    """Give an untrained generator, with the sampling that suits the one that ships."""
    net = JanusForConditionalGeneration(config)
    text: Any = config.text_config
    tokenizer: Any = janus_tokenizer()
    net.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        max_length=128,
        do_sample=True,
        guidance_scale=GUIDANCE_SCALE,
        temperature=TEMPERATURE,
        top_k=0,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids("<begin_of_image>")},
    )
    net.train(False)
    return net


def build_processor() -> JanusProcessor:
    """Give the processor of 64x64 pictures and of the lab's prompts, which have no chat template."""
    pictures = JanusImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, min_size=SIZE // GRID, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return JanusProcessor(image_processor=pictures, tokenizer=janus_tokenizer(), num_image_tokens=TOKENS)


def save(net: JanusForConditionalGeneration, folder: Path) -> None:
    """Write weights in 16 bits, configuration, tokenizer and processor, as in a repository of the hub."""
    net.half().save_pretrained(folder)  # type: ignore[no-untyped-call]
    build_processor().save_pretrained(folder)
    net.float()  # type: ignore[no-untyped-call]


def encode_captions(
    tokenizer: PreTrainedTokenizerFast, captions: list[str], dropped: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Tokenize captions up to the begin-of-image token: ids and mask, both int64 (B, L), padded on the left.

    Of the `dropped` (B,) only the first and last token are left, the others padding that is attended to.
    """
    boi: Any = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    read = tokenizer(captions, padding=True, return_tensors="pt")
    ids = F.pad(read["input_ids"], (0, 1), value=boi)
    if dropped is not None:
        words = (ids != tokenizer.bos_token_id) & (ids != boi)
        ids = ids.masked_fill(words & dropped[:, None], tokenizer.pad_token_id)
    return ids, F.pad(read["attention_mask"], (0, 1), value=1)


def image_states(net: JanusForConditionalGeneration, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
    """Hidden states (B, N, D) that predict image tokens (B, N) from the caption and the tokens before."""
    pictures = net.prepare_embeddings_for_image_generation(tokens[:, :-1])
    embeds = torch.cat([net.get_input_embeddings()(ids), pictures], 1)
    mask = torch.cat([mask, mask.new_ones(pictures.shape[:2])], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    states: Tensor = net.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    return states[:, ids.shape[1] - 1 :]


class PlanProbe(nn.Module):
    """Reads off a layer what the picture will show: at the begin-of-image token all of it, then cell by cell.

    Trained with the generator and thrown away: it shortens the time in which relations are learned.
    """

    def __init__(self, width: int, layer: nn.Module) -> None:
        super().__init__()
        self.scene = SceneProbe(width, width)
        self._read = torch.empty(0)
        self.hook = layer.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        self._read = output[0] if isinstance(output, tuple) else output

    def loss(self, data: TokenizedScenes, rows: Tensor) -> Tensor:
        """Loss of what was just read, of the `rows` (B,) with a caption."""
        states = self._read[rows, -TOKENS:].float()
        return self.scene.loss(states, states[:, 0], data[rows])


def train_language_model(
    net: JanusForConditionalGeneration,
    data: TokenizedScenes,
    steps: int,
    *,
    batch: int = 32,
    seed: int = 0,
    lr: float = 3e-3,
) -> None:
    """Train what writes image tokens: Muon for the layers, AdamW for the rest, warm-up and cosine decay."""
    model = net.model
    # Written out, a step takes 28% less than with fused attention, whose gradients are slow in bfloat16.
    net.set_attn_implementation("eager")
    trained = [
        model.language_model,
        model.generation_embeddings,
        model.generation_aligner,
        model.generation_head,
    ]
    net.requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)
    with torch.no_grad():  # what looks alike is read alike from the start
        model.generation_embeddings.weight.copy_(codes(model.vqmodel))
    layers = model.language_model.layers
    probe = PlanProbe(model.generation_head.proj_out.in_features, layers[len(layers) // 2])
    hidden = [w for w in layers.parameters() if w.ndim == 2]
    held = {id(w) for w in hidden}
    rest = [w for part in (*trained, probe) for w in part.parameters() if id(w) not in held]
    optimizers = [
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.02, betas=(0.9, 0.98)),
    ]
    rng = np.random.default_rng(seed)
    encode = partial(encode_captions, janus_tokenizer())
    stream = shuffled_batches(data, batch, rng)
    mean, started = math.nan, time.monotonic()
    for step in track(range(steps), description="language model"):
        scale = min((step + 1) / 50, 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
        some = next(stream)
        corrupted = CORRUPTED if step >= steps * TRUE_UNTIL else 0.0
        captions = [caption_of(scene, rng, corrupted) for scene in some.scenes]
        dropped = torch.from_numpy(rng.random(batch) < UNCONDITIONAL)
        ids, mask = encode(captions, dropped)
        with torch.autocast("cpu", torch.bfloat16, enabled=half_multiplies()):
            states = image_states(net, ids, mask, some.tokens)
            logits = model.generation_head(states)
        loss = F.cross_entropy(logits.float().flatten(0, 1), some.tokens.flatten())
        plan = probe.loss(some, (~dropped).nonzero()[:, 0])
        weight = 0.3 * max(0.0, 1 - step / (steps * PROBE_UNTIL))
        (loss + weight * plan).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*hidden, *rest], 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * scale
            optimizer.step()
            optimizer.zero_grad()
        mean = loss.item() if math.isnan(mean) else mean + 0.02 * (loss.item() - mean)
        if step % 50 == 49:
            print(
                f"language model step {step + 1}: {mean:.3f} nats a token, plan {plan.item():.3f}, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
    probe.hook.remove()
    net.set_attn_implementation("sdpa")
    net.requires_grad_(False)
