"""Image tokens a second: sampled, beside transformers' own `generate`, and learned from.

    python benchmarks/sampling.py [--device cuda] [--rounds 5] [--models tiny,1b-2-layers]

Januses with random weights, guidance 5, two prompts of unlike length with some images each. The two sides of
a comparison take turns within one process, so a slow spell of the machine meets both; medians are given,
of the clock and, on the CPU, of the process's own CPU seconds, which busy neighbours inflate less.

"Learned from" is a forward and backward pass by teacher forcing. The other side there is the plain way of
the trainers around: logits of all images at once, in float32, kept for the backward pass.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from rewardzoo.trainers.policies import JanusPolicy, PromptBatch, Sampling

RESULTS = Path(__file__).parent / "results" / "sampling.json"
PAD, BOS, EOS, BOI, IMAGE = range(5)
PROMPT_LENGTHS = (12, 20)
# Text width, MLP width, layers, heads, codes, vocabulary, tokens a side. "1b" is Janus-Pro-1B's; with 2
# layers, for a CPU, its images are 6 x 6 tokens rather than 24 x 24, which take minutes a turn.
SHAPES = {
    "tiny": (128, 256, 4, 4, 256, 256, 8),
    "1b-2-layers": (2048, 5632, 2, 16, 16384, 102400, 6),
    "1b": (2048, 5632, 24, 16, 16384, 102400, 24),
}


def build(name: str, dtype: torch.dtype, device: str) -> JanusPolicy:
    from transformers import (
        GenerationConfig,
        JanusConfig,
        JanusForConditionalGeneration,
        JanusVisionConfig,
        JanusVQVAEConfig,
        LlamaConfig,
    )

    width, mlp, layers, heads, codes, words, side = SHAPES[name]
    text = LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    vision = JanusVisionConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=side * 4,
        patch_size=4,
        projection_dim=width,
        num_image_tokens=side**2,
    )
    vq = JanusVQVAEConfig(
        num_embeddings=codes,
        base_channels=32,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=1,
        projection_dim=width,
        image_token_embed_dim=width,
    )
    config = JanusConfig(text_config=text, vision_config=vision, vq_config=vq, image_token_id=IMAGE)
    torch.manual_seed(0)
    with torch.device(device):
        janus = JanusForConditionalGeneration(config).to(dtype)
    janus.generation_config = GenerationConfig(
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, generation_kwargs={"boi_token_id": BOI}
    )
    tokenizer = SimpleNamespace(
        pad_token_id=PAD, bos_token_id=BOS, boi_token="<boi>", convert_tokens_to_ids={"<boi>": BOI}.get
    )
    return JanusPolicy(janus, SimpleNamespace(tokenizer=tokenizer, chat_template=None))


def make_prompts(words: int, group: int, device: str) -> PromptBatch:
    longest = max(PROMPT_LENGTHS)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(IMAGE + 1, words, (len(PROMPT_LENGTHS), longest), generator=generator)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(PROMPT_LENGTHS):
        mask[row, longest - length :] = 1
        ids[row, longest - length] = BOS
    ids = ids.masked_fill(mask == 0, PAD)
    ids[:, -1] = BOI
    return PromptBatch(ids, mask).repeat_interleave(group).to(device)


def plain_logprobs(policy: JanusPolicy, prompts: PromptBatch, tokens: Tensor) -> Tensor:
    """Conditional log-probabilities of all images, their logits in one piece."""
    janus = policy.janus
    embeds = [
        janus.get_input_embeddings()(prompts.input_ids),
        janus.prepare_embeddings_for_image_generation(tokens[:, :-1]),
    ]
    mask = torch.cat([prompts.attention_mask, torch.ones_like(tokens[:, :-1])], 1)
    states = janus.model.language_model(
        inputs_embeds=torch.cat(embeds, 1),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state[:, -tokens.shape[1] :]
    logprobs: Tensor = janus.model.generation_head(states).float().log_softmax(-1)
    return logprobs.gather(-1, tokens[..., None])[..., 0]


def compare(ways: dict[str, Callable[[], object]], tokens: int, rounds: int, cuda: bool) -> dict[str, Any]:
    """Run each in turn; give tokens a second by the clock (median, slowest, fastest) and by CPU time."""
    clock: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, work in ways.items():
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            started, spent = time.perf_counter(), time.process_time()
            work()
            if cuda:
                torch.cuda.synchronize()
                memory[name] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            if turn > 0:  # the first turn warms up
                clock[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - spent)
    result: dict[str, Any] = {}
    for name in ways:
        result[name] = {
            "tokens_per_second": round(tokens / statistics.median(clock[name]), 1),
            "slowest_fastest": [round(tokens / f(clock[name]), 1) for f in (max, min)],
        }
        if cuda:
            result[name]["peak_gib"] = memory[name]
        else:
            result[name]["tokens_per_cpu_second"] = round(tokens / statistics.median(cpu[name]), 1)
    return result


def measure(name: str, dtype: torch.dtype, device: str, group: int, rounds: int) -> dict[str, Any]:
    policy = build(name, dtype, device)
    prompts = make_prompts(SHAPES[name][5], group, device)
    steps, batch = policy.tokens_per_image, len(prompts)
    uniforms = torch.rand(batch, steps, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = policy.sample(prompts, uniforms, Sampling())

    def generate() -> Tensor:
        made: Tensor = policy.janus.generate(
            prompts.input_ids,
            attention_mask=prompts.attention_mask,
            generation_mode="image",
            do_sample=True,
            guidance_scale=5.0,
        )
        return made

    def learn(logprobs: Callable[[], Tensor]) -> None:
        policy.zero_grad()
        logprobs().mean().backward()

    cuda = device.startswith("cuda")
    off = (policy(prompts, images.tokens, Sampling()).logprobs - images.logprobs).detach().abs()
    return {
        "model": name,
        "dtype": str(dtype).removeprefix("torch."),
        "images": batch,
        "tokens_per_image": steps,
        "logprob_rollout_minus_teacher_forced": {"mean": off.mean().item(), "max": off.max().item()},
        "sampled": compare(
            {
                "ours": lambda: policy.sample(prompts, uniforms, Sampling()),
                "generate": generate,
                "ours, guidance 1": lambda: policy.sample(prompts, uniforms, Sampling(1.0)),
            },
            batch * steps,
            rounds,
            cuda,
        ),
        "learned": compare(
            {
                "ours, cond": lambda: learn(lambda: policy(prompts, images.tokens, Sampling()).logprobs),
                "plain, cond": lambda: learn(lambda: plain_logprobs(policy, prompts, images.tokens)),
                "ours, cfg": lambda: learn(
                    lambda: policy(prompts, images.tokens, Sampling(logp_mode="cfg")).logprobs
                ),
            },
            batch * steps,
            rounds,
            cuda,
        ),
    }


def main(
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    rounds: Annotated[int, typer.Option(help="Turns that count.")] = 5,
    group: Annotated[int, typer.Option(help="Images a prompt.")] = 4,
    models: Annotated[str | None, typer.Option(help=f"Of {', '.join(SHAPES)}.")] = None,
    dtypes: Annotated[str, typer.Option(help="Of float32 and bfloat16.")] = "float32,bfloat16",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    cuda = device.startswith("cuda")
    names = (models or ("tiny,1b" if cuda else "tiny,1b-2-layers")).split(",")
    result: dict[str, Any] = {
        "hardware": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "load_before": os.getloadavg()[0],
        "runs": [],
    }
    for name in names:
        for dtype in dtypes.split(","):
            run = measure(name, getattr(torch, dtype), device, group, rounds)
            result["runs"].append(run)
            for kind in ("sampled", "learned"):
                for way, figures in run[kind].items():
                    print(f"{name:12} {dtype:9} {kind:8} {way:17} {json.dumps(figures)}")
            result["load_after"] = os.getloadavg()[0]
            (out or RESULTS).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
