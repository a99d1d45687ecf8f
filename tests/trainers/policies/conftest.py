"""Tiny random Januses with a tokenizer of words, in Janus-Pro's form and in the mini's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rewardzoo.trainers.policies import JanusPolicy, PromptBatch, Sampling

SIDE, PATCH = 16, 4
N = (SIDE // PATCH) ** 2
CODES = 48
PROMPTS = ("a red circle", "two blue square left of a red circle", "square")
SPECIAL = ("<pad>", "<bos>", "<eos>", "<image>", "<boi>", "<eoi>", "<unk>")
WORDS = ("a", "red", "blue", "circle", "square", "left", "of", "two", "<|User|>:", "<|Assistant|>:")

# What the template that transformers' converter writes into Janus-Pro's processors gives for one message.
PRO_TEMPLATE = (
    "{% for m in messages %}<|User|>: {{ m['content'][0]['text'] | trim }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)


def make_processor(chat_template: str | None = None) -> Any:
    from transformers import JanusImageProcessorPil, JanusProcessor, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*SPECIAL, *WORDS))}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"},
    )
    images = JanusImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, min_size=4, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return JanusProcessor(images, tokenizer, chat_template=chat_template, num_image_tokens=N)


def make_janus(*, seed: int = 0, tied: bool = False) -> Any:
    from transformers import (
        GenerationConfig,
        JanusConfig,
        JanusForConditionalGeneration,
        JanusVisionConfig,
        JanusVQVAEConfig,
        LlamaConfig,
    )

    text = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<bos>"),
        eos_token_id=SPECIAL.index("<eos>"),
    )
    vision = JanusVisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=32,
        num_image_tokens=N,
        depth=1,
    )
    vq = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=CODES,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=1,
        projection_dim=32,
        image_token_embed_dim=32,
    )
    config = JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq,
        image_token_id=SPECIAL.index("<image>"),
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        janus: Any = JanusForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in janus.named_parameters():  # else all codes are about as likely
            if "language_model" in name or "generation" in name:
                weight.mul_(8.0 if weight.ndim == 2 else 1.0)
    janus.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        generation_kwargs={"boi_token_id": SPECIAL.index("<boi>")},
    )
    return janus


def make_policy(**janus: Any) -> JanusPolicy:
    return JanusPolicy(make_janus(**janus), make_processor())


def uniforms(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rollout(policy: JanusPolicy, sampling: Sampling) -> tuple[PromptBatch, Any]:
    prompts = policy.encode(PROMPTS)
    return prompts, policy.sample(prompts, uniforms(len(PROMPTS)), sampling)


@pytest.fixture
def policy() -> JanusPolicy:
    return make_policy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_policy().save(tmp_path)
    return tmp_path
