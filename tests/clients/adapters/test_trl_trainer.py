"""A real GRPOTrainer of TRL learns from our reward functions."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rewardzoo.trainers  # noqa: F401  # mends torchvision before transformers asks for it
from rewardzoo import LocalRewards
from rewardzoo.clients.adapters import trl as adapter
from rewardzoo.trainers.lab import COLORS, SHAPES, Scene, parse_prompt, render

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
trl = pytest.importorskip("trl", reason="needs the extra trl: pip install 'rewardzoo[trl]'")

from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

pytestmark = pytest.mark.slow
WORDS = ["<pad>", "<s>", "</s>", "a", "photo", "of", *SHAPES, *COLORS]
PROMPTS = [f"a photo of a {color} circle" for color in COLORS]
STEPS, GROUP, BATCH = 40, 16, 96


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def policy() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.1,
        )
    )


def picture(prompt: str, color: str, rng: np.random.Generator) -> Any:
    """Draw the prompt's shape in the color that the policy chose: nothing where it chose another word."""
    if color not in COLORS:
        return None
    (entity,) = parse_prompt(prompt).entities
    return render(Scene((replace(entity, color=color),), ()), rng)


def test_a_grpo_trainer_learns_the_colors_from_our_rewards(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens, model = tokenizer(), policy()
    chosen: list[list[bool]] = []
    drawn: list[list[Any]] = []
    scores: list[list[float | None]] = []

    def rollout(prompts: list[str], _: Any) -> dict[str, Any]:
        ids = tokens(prompts)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor(ids)).logits[:, -1]
        choice = torch.distributions.Categorical(logits=logits).sample().tolist()
        chosen.append([WORDS[i] == prompt.split()[4] for i, prompt in zip(choice, prompts, strict=True)])
        drawn.append([picture(p, WORDS[i], rng) for i, p in zip(choice, prompts, strict=True)])
        return {
            "prompt_ids": ids,
            "completion_ids": [[i] for i in choice],
            "logprobs": None,
            "picture": drawn[-1],  # a list: TRL would give every row all of an array
        }

    local = LocalRewards(["hpsv2:mini", "imagereward:mini"])
    # Its scores span about 30 between a right and a wrong color, those of hpsv2 about 0.2.
    scaled = adapter.reward_function(local, {"imagereward:mini": 0.01}, images="picture", name="imagereward")
    awaited = adapter.async_reward_function(local, "hpsv2:mini", images="picture", name="hpsv2")

    def spied(**columns: Any) -> list[float | None]:
        scores.append(scaled(**columns))
        return scores[-1]

    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=[spied, awaited],
        rollout_func=rollout,
        processing_class=tokens,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * STEPS]),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=BATCH,
            num_generations=GROUP,
            max_completion_length=1,
            learning_rate=5e-3,
            max_steps=STEPS,
            logging_steps=5,
            beta=0.0,
            lr_scheduler_type="constant",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        ),
    )
    trainer.train()

    right = [sum(step) / len(step) for step in chosen]
    assert sum(right[:5]) / 5 < 0.15  # one of six colors, or another word
    assert sum(right[-5:]) / 5 > 0.5
    logs = [entry for entry in trainer.state.log_history if "rewards/hpsv2/mean" in entry]
    assert logs[-1]["rewards/hpsv2/mean"] > logs[0]["rewards/hpsv2/mean"] + 0.08
    assert logs[-1]["imagereward/imagereward:mini"] > logs[0]["imagereward/imagereward:mini"] + 8
    # No picture, no score: TRL left those out and trained on.
    assert [score is None for step in scores for score in step] == [
        picture is None for step in drawn for picture in step
    ]
    assert any(score is None for score in scores[0])
