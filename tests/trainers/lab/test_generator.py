from pathlib import Path

import numpy as np
import pytest
import torch

from rewardzoo.trainers.lab import HELD_OUT, parse_prompt, render, sample_prompts, sample_scene
from rewardzoo.trainers.lab.captions import CORRUPTED, caption_of, tokenize_scenes
from rewardzoo.trainers.lab.generator import (
    build,
    encode_captions,
    image_states,
    janus_config,
    save,
    train_language_model,
)
from rewardzoo.trainers.lab.generator_report import judge_samples, suggested_sampling, summarize
from rewardzoo.trainers.lab.scene_images import to_channels
from rewardzoo.trainers.lab.train_generator import OUT
from rewardzoo.trainers.lab.verdict import Statement, Verdict
from rewardzoo.trainers.lab.vocabularies import janus_tokenizer
from rewardzoo.trainers.lab.vq import (
    encode,
    picture_loss,
    quantize,
    reconstruction_accuracy,
    sharpen,
    to_range,
    train_vq,
)
from rewardzoo.trainers.policies import JanusPolicy, Sampling

PROMPTS = ["a red circle", "two blue squares above a green cross, on a plain background"]


@pytest.fixture(scope="module")
def policy() -> JanusPolicy:
    return JanusPolicy.load("mini")


@pytest.fixture(scope="module")
def scenes(policy):
    return tokenize_scenes(policy.janus.model.vqmodel, 512, seed=12345)


def tiny(seed: int):
    torch.manual_seed(seed)
    return build(janus_config(hidden=16, layers=2, heads=1, num_codes=16))


def test_the_shipped_files_load_and_generate_through_transformers_alone():
    # Not at the top: it has to come behind `rewardzoo`, which repairs torchvision.
    from transformers import AutoProcessor, JanusForConditionalGeneration

    net = JanusForConditionalGeneration.from_pretrained(OUT, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(OUT)
    inputs = processor(text=PROMPTS, generation_mode="image", padding=True, return_tensors="pt")
    tokens = net.generate(**inputs, generation_mode="image")
    assert tokens.shape == (2, 64)
    assert net.decode_image_tokens(tokens).shape == (2, 64, 64, 3)


def test_the_shipped_files_are_under_ten_megabytes():
    assert sum(path.stat().st_size for path in OUT.iterdir()) < 10e6


def test_reconstructions_of_fresh_scenes_are_judged_right(policy):
    assert reconstruction_accuracy(policy.janus.model.vqmodel, 200, seed=4321) >= 0.95


def test_no_code_is_dead(policy, scenes):
    uses = torch.bincount(scenes.tokens.flatten(), minlength=policy.janus.config.vq_config.num_embeddings)
    assert (uses > 0).float().mean() > 0.97
    assert uses.max() < 0.1 * uses.sum()


def test_the_models_own_encoder_gives_the_tokens_that_training_used(policy):
    rng = np.random.default_rng(8)
    images = to_channels(np.stack([render(sample_scene(rng), rng) for _ in range(8)]))
    vq = policy.janus.model.vqmodel
    with torch.no_grad():
        native = vq.encode(to_range(images)).image_tokens.view(8, 64)
    assert (native == encode(vq, images)).float().mean() > 0.95  # all but near ties


def test_the_base_is_right_often_enough_to_learn_from_and_seldom_enough_to_have_to(policy):
    groups = judge_samples(policy, sample_prompts(200, seed=77), 1, suggested_sampling(policy), seed=0)
    assert 0.35 <= summarize(groups)["right"] <= 0.65


def test_the_policy_reads_prompts_as_training_wrote_captions(policy):
    ids, mask = encode_captions(janus_tokenizer(), PROMPTS)
    read = policy.encode(PROMPTS)
    assert torch.equal(ids, read.input_ids)
    assert torch.equal(mask, read.attention_mask)
    blank, _ = encode_captions(janus_tokenizer(), PROMPTS, torch.tensor([True, False]))
    assert torch.equal(blank, policy.unconditional(read, torch.tensor([True, False])).input_ids)


def test_the_policys_probabilities_are_those_that_were_trained(policy, scenes):
    tokens = scenes.tokens[:2]
    with torch.no_grad():
        states = image_states(policy.janus, *encode_captions(janus_tokenizer(), PROMPTS), tokens)
        trained = policy.janus.model.generation_head(states).log_softmax(-1)
        own = policy(policy.encode(PROMPTS), tokens, Sampling(logp_mode="cond")).logprobs
    assert torch.allclose(own, trained.gather(-1, tokens[..., None])[..., 0], atol=1e-4)


def test_the_stated_share_of_captions_is_wrong_and_none_is_held_out():
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(3000):
        scene = sample_scene(rng)
        said = parse_prompt(caption_of(scene, rng))
        wrong += said != scene
        assert not HELD_OUT.intersection(said.combinations)
    assert abs(wrong / 3000 - CORRUPTED) < 0.025


def test_training_repeats_from_its_seeds_and_leaves_a_codebook_of_length_one():
    runs = []
    for _ in range(2):
        net = tiny(seed=0)
        before = net.model.vqmodel.encoder.conv_in.weight.clone()
        train_vq(net.model.vqmodel, 10, batch=2, seed=0)
        sharpen(net.model.vqmodel, 2, batch=2, seed=3)
        data = tokenize_scenes(net.model.vqmodel, 8, seed=1, batch=4)
        train_language_model(net, data, 3, batch=4, seed=2)
        assert not torch.equal(before, net.model.vqmodel.encoder.conv_in.weight)
        assert torch.allclose(net.model.vqmodel.quantize.embedding.weight.norm(dim=1), torch.ones(16))
        runs.append(net.state_dict())
    assert all(torch.equal(weight, runs[1][name]) for name, weight in runs[0].items())


def test_gradients_pass_the_codebook_straight_to_the_latents():
    book = torch.eye(4)
    z = torch.tensor([[[0.1, 0.9, 0.0, 0.0]]], requires_grad=True)
    quantized = quantize(z, book)
    assert quantized.tokens.tolist() == [[1]]
    assert torch.allclose(quantized.codes, book[1])
    (quantized.codes * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert z.grad.tolist() == [[[1.0, 2.0, 3.0, 4.0]]]


def test_a_color_that_is_off_costs_more_than_brightness_and_an_object_more_than_its_background():
    target = torch.full((1, 3, 16, 16), -0.5)
    target[:, 0, 8:, 8:] = 0.8
    grey, color, on_object = target.clone(), target.clone(), target.clone()
    grey[:, :, :4, :4] += 0.1
    color[:, 0, :4, :4] += 0.1
    on_object[:, :, 12:, 12:] += 0.1
    losses = [picture_loss(drawn, target).item() for drawn in (target, grey, color, on_object)]
    assert losses[0] == 0
    assert losses[1] < losses[2] < losses[3]


def test_a_summary_counts_pictures_by_category_and_groups_by_outcome():
    def verdict(color: bool, count: bool) -> Verdict:
        return Verdict((Statement("color", "", color), Statement("count", "", count)), extras=0)

    right, wrong = verdict(True, True), verdict(True, False)
    shares = summarize([[right, right], [wrong, wrong], [right, wrong], [wrong, right]])
    assert shares["right"] == 0.5
    assert (shares["color"], shares["count"]) == (1.0, 0.5)
    assert (shares["all right"], shares["all wrong"], shares["mixed"]) == (0.25, 0.25, 0.5)


def test_a_generator_that_was_saved_loads_as_a_policy(tmp_path: Path):
    save(tiny(seed=0), tmp_path)
    assert JanusPolicy.load(tmp_path).tokens_per_image == 64
