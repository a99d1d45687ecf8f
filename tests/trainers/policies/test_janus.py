from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rewardzoo.trainers.policies import JanusPolicy, LogpMode, PromptBatch, Sampling
from rewardzoo.trainers.policies.partial import decode_partial

from .conftest import (
    CODES,
    PRO_TEMPLATE,
    PROMPTS,
    SIDE,
    N,
    make_janus,
    make_policy,
    make_processor,
    rollout,
    uniforms,
)

MODES: tuple[LogpMode, ...] = ("cond", "cfg", "cfg_detach_uncond")


def test_prompts_are_padded_on_the_left_and_end_in_begin_of_image(policy: JanusPolicy) -> None:
    prompts = policy.encode(PROMPTS)
    assert prompts.input_ids[0].tolist() == [0, 0, 0, 0, 0, 1, 7, 8, 10, 4]
    assert prompts.attention_mask[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_janus_pro_prompts_are_what_transformers_documents_for_images() -> None:
    processor = make_processor(PRO_TEMPLATE)
    policy = JanusPolicy(make_janus(), processor)
    message = [{"role": "user", "content": [{"type": "text", "text": "a red circle"}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True)
    assert text == "<|User|>: a red circle\n\n<|Assistant|>:"
    wanted = processor(text=text, generation_mode="image", return_tensors="pt")["input_ids"]
    assert torch.equal(policy.encode(["a red circle"]).input_ids, wanted)
    shown = processor.tokenizer.decode(wanted[0])
    assert shown == "<bos> <|User|>: a red circle <|Assistant|>: <boi>"


def test_blank_prompts_keep_their_length_and_the_two_marks(policy: JanusPolicy) -> None:
    prompts = policy.encode(PROMPTS)
    blank = policy.unconditional(prompts)
    assert blank.input_ids[1].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 4]
    assert torch.equal(blank.attention_mask, prompts.attention_mask)
    some = policy.unconditional(prompts, torch.tensor([True, False, True]))
    assert torch.equal(some.input_ids[0], blank.input_ids[0])
    assert torch.equal(some.input_ids[1], prompts.input_ids[1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_teacher_forcing_gives_the_logprobs_of_the_rollout(
    policy: JanusPolicy, mode: LogpMode, scale: float
) -> None:
    sampling = Sampling(scale, temperature=0.7, logp_mode=mode)
    prompts, images = rollout(policy, sampling)
    forced = policy(prompts, images.tokens, sampling)
    assert images.logprobs.dtype == forced.logprobs.dtype == torch.float32
    assert (forced.logprobs - images.logprobs).abs().max() < 1e-5
    assert bool((forced.entropy > 0).all())
    assert bool((forced.entropy < math.log(CODES)).all())


@pytest.mark.parametrize("mode", MODES)
def test_logprobs_and_images_depend_on_no_neighbour_and_no_padding(
    policy: JanusPolicy, mode: LogpMode
) -> None:
    sampling = Sampling(3.0, logp_mode=mode)
    prompts, images = rollout(policy, sampling)
    for row, prompt in enumerate(PROMPTS):
        alone = policy.encode([prompt])
        assert alone.input_ids.shape[1] <= prompts.input_ids.shape[1]
        again = policy.sample(alone, uniforms(len(PROMPTS))[row : row + 1], sampling)
        assert torch.equal(again.tokens[0], images.tokens[row])
        assert (again.logprobs[0] - images.logprobs[row]).abs().max() < 1e-5
        forced = policy(alone, images.tokens[row : row + 1], sampling).logprobs[0]
        assert (forced - images.logprobs[row]).abs().max() < 1e-5


def test_images_of_a_group_are_those_of_their_prompts_alone(policy: JanusPolicy) -> None:
    sampling, chance = Sampling(3.0), uniforms(6)
    group = policy.encode(PROMPTS[:2]).repeat_interleave(3)
    images = policy.sample(group, chance, sampling)
    for row in range(6):
        alone = policy.sample(group[row : row + 1], chance[row : row + 1], sampling)
        assert torch.equal(alone.tokens[0], images.tokens[row])
    assert len(images.tokens.unique(dim=0)) == 6


def test_a_repeated_prompt_is_read_once_and_guidance_1_reads_no_blank(policy: JanusPolicy) -> None:
    rows: list[int] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        rows.append(len(kwargs["inputs_embeds"]))

    policy.janus.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    group = policy.encode(PROMPTS[:2]).repeat_interleave(4)
    policy.sample(group, uniforms(8), Sampling(1.0))
    assert rows == [2] + [8] * (N - 1)
    rows.clear()
    policy.sample(group, uniforms(8), Sampling(5.0))
    assert rows == [4] + [16] * (N - 1)


@pytest.mark.parametrize("scale", [3.0, 5.0])
def test_tokens_and_logprobs_follow_the_guided_distribution_of_transformers(
    policy: JanusPolicy, scale: float
) -> None:
    """Greedy decoding by `generate`, then our teacher forcing ranks each of its tokens first."""
    prompts = policy.encode(PROMPTS)
    greedy = policy.janus.generate(
        prompts.input_ids,
        attention_mask=prompts.attention_mask,
        generation_mode="image",
        do_sample=False,
        guidance_scale=scale,
    )
    sure = Sampling(scale, temperature=1e-4, logp_mode="cfg")
    assert policy(prompts, greedy, sure).logprobs.exp().min() > 0.99
    assert torch.equal(policy.sample(prompts, uniforms(3), sure).tokens, greedy)


def test_tokens_are_as_frequent_as_their_probabilities_say(policy: JanusPolicy) -> None:
    """The first token of 1500 images against its exact distribution, by the chi-squared statistic."""
    sampling = Sampling(2.0, logp_mode="cfg")
    draws = 1500
    prompts = policy.encode(PROMPTS[:1]).repeat_interleave(draws)
    first = policy.sample(prompts, uniforms(draws), sampling).tokens[:, 0]
    every = torch.zeros(CODES, N, dtype=torch.int64)
    every[:, 0] = torch.arange(CODES)
    expected = draws * policy(prompts[:CODES], every, sampling).logprobs[:, 0].exp().detach()
    assert expected.sum() == pytest.approx(draws, rel=1e-4)
    seen = torch.bincount(first, minlength=CODES)
    statistic = ((seen - expected) ** 2 / expected).sum().item()
    assert statistic < 90  # 47 degrees of freedom: 1 in 10,000 is beyond 88


@pytest.mark.parametrize("mode", MODES)
def test_gradients_go_where_the_mode_says(policy: JanusPolicy, mode: LogpMode) -> None:
    """Against the formula written out with the two passes apart."""
    sampling = Sampling(3.0, temperature=0.8, logp_mode=mode)
    prompts, images = rollout(policy, sampling)
    policy(prompts, images.tokens, sampling).logprobs.sum().backward()
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    assert found.keys() == {name for name, p in policy.named_parameters() if p.requires_grad}
    policy.zero_grad()

    def logits(batch: PromptBatch) -> torch.Tensor:
        janus = policy.janus
        embeds = torch.cat(
            [
                janus.get_input_embeddings()(batch.input_ids),
                janus.prepare_embeddings_for_image_generation(images.tokens[:, :-1]),
            ],
            1,
        )
        mask = torch.cat([batch.attention_mask, torch.ones(3, N - 1, dtype=torch.int64)], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = janus.model.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions)
        return janus.model.generation_head(out.last_hidden_state[:, -N:])

    c, u = logits(prompts), logits(policy.unconditional(prompts))
    u = u.detach() if mode == "cfg_detach_uncond" else u
    guided = c if mode == "cond" else (u + 3.0 * (c - u)) / 0.8
    guided.log_softmax(-1).gather(-1, images.tokens[..., None]).sum().backward()
    for name, grad in found.items():
        torch.testing.assert_close(policy.get_parameter(name).grad, grad, rtol=1e-3, atol=1e-4)


def test_sampling_leaves_no_graph_no_randomness_used_and_the_mode_as_it_was(policy: JanusPolicy) -> None:
    policy.train()
    before = torch.get_rng_state()
    _, images = rollout(policy, Sampling())
    assert policy.training
    assert torch.equal(torch.get_rng_state(), before)
    assert not images.logprobs.requires_grad
    weight = torch.ones(3, N, requires_grad=True)
    (images.logprobs * weight).sum().backward()  # fails on inference tensors
    assert torch.equal(weight.grad, images.logprobs)


def test_frozen_parts_stay_frozen_and_the_head_on_request() -> None:
    def trained(policy: JanusPolicy) -> set[str]:
        names = [name for name, p in policy.named_parameters() if p.requires_grad]
        return {name.removeprefix("janus.").removeprefix("model.").split(".")[0] for name in names}

    writes = {"generation_head", "generation_embeddings", "generation_aligner"}
    assert trained(make_policy()) == {"language_model"} | writes
    assert trained(JanusPolicy(make_janus(), make_processor(), train_head=False)) == {"language_model"}


def test_pictures_are_those_of_the_processor(policy: JanusPolicy) -> None:
    tokens = torch.randint(CODES, (20, N), generator=torch.Generator().manual_seed(0))
    pictures = policy.decode(tokens)
    assert pictures.shape == (20, 16, 16, 3)
    assert pictures.dtype == np.uint8
    with torch.no_grad():
        pixels = policy.janus.decode_image_tokens(tokens)
    wanted = policy.processor.postprocess(list(pixels.permute(0, 3, 1, 2)), return_tensors="PIL.Image.Image")
    wanted = wanted["pixel_values"]
    off = np.abs(pictures.astype(int) - np.stack([np.asarray(p) for p in wanted]).astype(int))
    assert off.max() <= 1  # float32 here, float64 there: on the edge between two levels
    assert (off > 0).mean() < 1e-3


def test_a_reference_stays_as_it_was_and_shares_what_is_frozen(policy: JanusPolicy) -> None:
    sampling = Sampling()
    prompts, images = rollout(policy, sampling)
    reference = policy.reference()
    before = policy(prompts, images.tokens, sampling).logprobs.detach()
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.ones_like(p))
    assert torch.equal(reference(prompts, images.tokens, sampling).logprobs, before)
    assert not torch.allclose(policy(prompts, images.tokens, sampling).logprobs, before)
    assert not any(p.requires_grad for p in reference.parameters())
    own = dict(policy.named_parameters())
    for name, p in reference.named_parameters():
        assert (p is own[name]) == (not own[name].requires_grad)
    assert reference.processor is policy.processor


@pytest.mark.parametrize(
    ("chance", "message"),
    [
        (torch.zeros(3, N + 1, dtype=torch.float64), "these prompts need"),
        (torch.ones(3, N, dtype=torch.float64), r"in \[0, 1\)"),
        (torch.full((3, N), math.nan, dtype=torch.float64), r"in \[0, 1\)"),
    ],
)
def test_uniforms_that_cannot_work_are_refused(
    policy: JanusPolicy, chance: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        policy.sample(policy.encode(PROMPTS), chance, Sampling())


def test_dropout_is_refused() -> None:
    janus = make_janus()
    janus.config.text_config.attention_dropout = 0.1
    with pytest.raises(ValueError, match="Set it to 0"):
        JanusPolicy(janus, make_processor())


def test_gradient_checkpointing_runs_layers_twice_and_changes_no_gradient(policy: JanusPolicy) -> None:
    sampling = Sampling(3.0, logp_mode="cfg")
    prompts, images = rollout(policy, sampling)

    def gradients() -> list[torch.Tensor]:
        policy.zero_grad()
        policy(prompts, images.tokens, sampling).logprobs.sum().backward()
        return [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    norms = 0

    def count(*_: Any) -> None:
        nonlocal norms
        norms += 1

    policy.train()
    policy.janus.model.language_model.layers[0].input_layernorm.register_forward_hook(count)
    plain = gradients()
    assert norms == 1
    policy.gradient_checkpointing()
    recomputed = gradients()
    assert norms == 3
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert torch.equal(rollout(policy, sampling)[1].tokens, images.tokens)  # the cache is still used
    policy.gradient_checkpointing(False)
    norms = 0
    gradients()
    assert norms == 1


def test_a_partial_picture_is_final_above_and_grey_below(policy: JanusPolicy) -> None:
    tokens = torch.randint(CODES, (2, N), generator=torch.Generator().manual_seed(0))
    whole = policy.decode(tokens)
    assert np.array_equal(decode_partial(policy, tokens, N), whole)
    part = decode_partial(policy, tokens, 6)  # a row of four cells and half of the next
    assert (part[:, 8:] == 128).all()
    assert (part[:, 4:8, 8:] == 128).all()
    assert not (part[:, :4] == 128).all()
    hidden = tokens.clone()
    hidden[:, 6:] = 0
    assert np.array_equal(decode_partial(policy, hidden, 6), part)
    with pytest.raises(ValueError, match=r"in \[1, 16\]"):
        decode_partial(policy, tokens, 0)


def test_autocast_to_bfloat16_keeps_logprobs_in_float32(policy: JanusPolicy) -> None:
    sampling = Sampling(3.0, logp_mode="cfg")
    prompts, images = rollout(policy, sampling)
    with torch.autocast("cpu", torch.bfloat16):
        forced = policy(prompts, images.tokens, sampling)
        sampled = policy.sample(prompts, uniforms(3), sampling)
    assert forced.logprobs.dtype == forced.entropy.dtype == sampled.logprobs.dtype == torch.float32
    off = (forced.logprobs - images.logprobs).abs()
    assert 0 < off.mean() < 0.2  # bfloat16's own rounding, times the guidance


def test_pictures_are_encoded_as_transformers_prepares_and_encodes_them(policy: JanusPolicy) -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(3)]
    tokens = policy.encode_images(pictures)
    assert tokens.shape == (3, N)
    pixels = policy.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    wanted = policy.janus.model.vqmodel.encode(pixels).image_tokens
    assert torch.equal(tokens, wanted.view(3, N))
    assert len(tokens.unique()) > 1


def test_pictures_of_any_square_size_are_encoded_and_others_refused(policy: JanusPolicy) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    large = picture.resize((SIDE * 8, SIDE * 8), Image.Resampling.NEAREST)
    assert policy.encode_images([large]).shape == (1, N)
    with pytest.raises(ValueError, match="must be square, got 128x16: crop it"):
        policy.encode_images([large.resize((128, 16))])


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(3.0, 0.9, "cfg")])
def test_images_sampled_in_pieces_with_some_given_up_are_those_sampled_at_once(
    policy: JanusPolicy, sampling: Sampling
) -> None:
    prompts, whole = rollout(policy, sampling)
    chance = uniforms(len(prompts))
    whole = policy.sample(prompts, chance, sampling)
    drawing = policy.begin(prompts, chance, sampling)
    assert drawing.tokens.shape == (len(prompts), 0)
    for count in (1, 6, 6):
        drawing.advance(count)
    assert torch.equal(drawing.tokens, whole.tokens[:, :6])
    kept = torch.tensor([0, len(prompts) - 1])
    drawing.keep(kept)
    drawing.advance(N)
    assert torch.equal(drawing.tokens, whole.tokens[kept])
    assert torch.allclose(drawing.logprobs, whole.logprobs[kept], atol=1e-5)
    with pytest.raises(ValueError, match=f"an image has {N} tokens, got {N + 1}"):
        drawing.advance(N + 1)
