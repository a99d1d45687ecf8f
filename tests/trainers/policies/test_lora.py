from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rewardzoo.errors import WeightsError
from rewardzoo.trainers.policies import JanusPolicy, LoRA, Sampling

from .conftest import make_policy, rollout

SAMPLING = Sampling(3.0, logp_mode="cfg")
SMALL = LoRA(rank=4, alpha=8)


def trained(policy: JanusPolicy) -> JanusPolicy:
    """Give fresh adapters values as training would, whose B begins at 0."""
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return policy


def test_fresh_adapters_change_nothing_and_are_all_that_is_trained() -> None:
    plain, adapted = make_policy(), make_policy().adapt(SMALL)
    assert torch.equal(rollout(plain, SAMPLING)[1].logprobs, rollout(adapted, SAMPLING)[1].logprobs)
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert all(".language_model." in name and ".lora_" in name for name in names)
    counts = adapted.parameter_counts()
    # Four projections of 32 x 32 and three of 32 x 64, in two layers, each with A (4, in) and B (out, 4).
    assert counts["language_model"][0] == 2 * 4 * (4 * (32 + 32) + 3 * (32 + 64))
    assert sum(trained for trained, _ in counts.values()) == counts["language_model"][0]


def test_adapters_begin_alike_in_every_process_and_use_no_global_randomness() -> None:
    torch.manual_seed(1)
    first = make_policy().adapt(SMALL).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    policy = make_policy().adapt(SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(w, first[name]) for name, w in policy.state_dict().items())


def test_a_reference_of_adapters_keeps_their_present_values_above_a_shared_base() -> None:
    policy = trained(make_policy().adapt(SMALL))
    prompts, images = rollout(policy, SAMPLING)
    reference = policy.reference()
    own = {id(p) for p in policy.parameters()}
    copied = {name for name, p in reference.named_parameters() if id(p) not in own}
    assert copied == {name for name, p in policy.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.zero_()
    forced = reference(prompts, images.tokens, SAMPLING).logprobs
    assert (forced - images.logprobs).abs().max() < 1e-5
    assert (policy(prompts, images.tokens, SAMPLING).logprobs - images.logprobs).abs().max() > 1e-2


def test_a_saved_policy_is_there_merged_and_as_an_adapter(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import JanusForConditionalGeneration

    make_policy().save(tmp_path / "base")
    policy = trained(JanusPolicy.load(tmp_path / "base").adapt(SMALL))
    prompts, images = rollout(policy, SAMPLING)
    weights = {name: w.clone() for name, w in policy.state_dict().items()}
    policy.save(tmp_path / "saved")
    assert all(torch.equal(w, weights[name]) for name, w in policy.state_dict().items())

    merged = JanusPolicy.load(tmp_path / "saved")
    assert (merged(prompts, images.tokens, SAMPLING).logprobs - images.logprobs).abs().max() < 1e-5
    again = JanusPolicy.load(tmp_path / "base", adapter=tmp_path / "saved" / "adapter")
    assert all(torch.equal(w, weights[name]) for name, w in again.state_dict().items())
    assert again.parameter_counts() == policy.parameter_counts()

    base = JanusForConditionalGeneration.from_pretrained(tmp_path / "base")
    theirs = PeftModel.from_pretrained(base, tmp_path / "saved" / "adapter").get_base_model()
    assert torch.equal(rollout(JanusPolicy(theirs, policy.processor), SAMPLING)[1].tokens, images.tokens)


def test_an_unknown_target_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"\['qkv'\].*'q_proj'"):
        make_policy().adapt(LoRA(targets=("qkv", "o_proj")))


def test_a_second_adapter_and_a_missing_one_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="adapters already"):
        make_policy().adapt(SMALL).adapt(SMALL)
    with pytest.raises(WeightsError, match="base it was trained on"):
        JanusPolicy.load(folder, adapter=folder)
