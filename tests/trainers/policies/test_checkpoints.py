from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rewardzoo.errors import WeightsError
from rewardzoo.trainers.policies import JanusPolicy, Sampling

from .conftest import PRO_TEMPLATE, make_janus, make_policy, make_processor, rollout


@pytest.mark.parametrize("template", [None, PRO_TEMPLATE])
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_loads_here_and_in_transformers(
    tmp_path: Path, template: str | None, tied: bool
) -> None:
    from transformers import JanusForConditionalGeneration

    policy = JanusPolicy(make_janus(tied=tied), make_processor(template))
    policy.save(tmp_path)
    loaded = JanusPolicy.load(tmp_path)
    prompts, images = rollout(policy, Sampling())
    again_prompts, again = rollout(loaded, Sampling())
    assert torch.equal(again_prompts.input_ids, prompts.input_ids)
    assert torch.equal(again.tokens, images.tokens)
    assert torch.equal(again.logprobs, images.logprobs)
    theirs = JanusForConditionalGeneration.from_pretrained(tmp_path)
    made = theirs.generate(
        prompts.input_ids, attention_mask=prompts.attention_mask, generation_mode="image", guidance_scale=5
    )
    assert made.shape == images.tokens.shape


def test_a_gathered_state_dict_is_saved_instead_of_the_modules_own(tmp_path: Path) -> None:
    policy, other = make_policy(), make_policy(seed=1)
    policy.save(tmp_path, state_dict=other.state_dict())
    loaded = JanusPolicy.load(tmp_path)
    for name, weight in other.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_weights_load_in_the_dtype_asked_for(folder: Path) -> None:
    policy = JanusPolicy.load(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    prompts, images = rollout(policy, Sampling(logp_mode="cfg"))
    assert images.logprobs.dtype == torch.float32
    assert policy(prompts, images.tokens, Sampling(logp_mode="cfg")).logprobs.dtype == torch.float32


def change(folder: Path, **entries: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


@pytest.mark.parametrize(("kind", "hint"), [("llama", "not 'janus'"), ("multi_modality", "Janus-Pro-7B")])
def test_another_kind_of_model_is_refused_by_name(folder: Path, kind: str, hint: str) -> None:
    change(folder, model_type=kind)
    with pytest.raises(WeightsError, match=hint):
        JanusPolicy.load(folder)


def test_a_checkpoint_without_its_processor_says_how_to_get_one(folder: Path) -> None:
    for name in (
        "processor_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(WeightsError, match="save_pretrained"):
        JanusPolicy.load(folder)


def test_a_checkpoint_of_other_sizes_or_lacking_weights_is_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["model.generation_head.vision_head.bias"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"vision_head\.bias"):
        JanusPolicy.load(folder)


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a Janus checkpoint"):
        JanusPolicy.load(tmp_path)


def test_what_the_hub_cannot_give_names_the_download_and_its_commit() -> None:
    with pytest.raises(
        WeightsError, match="hf download deepseek-community/Janus-Pro-1B --revision 1655280bb7"
    ):
        JanusPolicy.load("deepseek-community/Janus-Pro-1B")
