from dataclasses import replace

import pytest
import torch

from rewardzoo.errors import UnknownRewardError
from rewardzoo.rewards import families, identify, load, resolve, specs
from rewardzoo.rewards._hashes import sha256
from rewardzoo.rewards.hpsv2 import HPSv2


def test_every_file_of_the_package_is_a_reward_with_a_spec() -> None:
    assert {"hpsv2", "imagereward"} <= set(families())
    assert [spec.name for spec in specs()] == families()


# No commit of these is known from where this was written; the first download's hash is held to.
UNPINNED = {
    "CaraJ/ORM-T2I-R1",
    "CodeGoat24/UnifiedReward-2.0-qwen-3b",
    "CodeGoat24/UnifiedReward-2.0-qwen-7b",
    "CodeGoat24/UnifiedReward-7b",
    "CodeGoat24/UnifiedReward-7b-v1.5",
    "CodeGoat24/UnifiedReward-qwen-3b",
    "CodeGoat24/UnifiedReward-qwen-7b",
    "RE-N-Y/mpsv1",
    "ZiyuG/Image-Generation-CoT",
    "zhiqiulin/clip-flant5-xxl",
}


def test_every_released_weight_is_pinned_to_a_commit_or_a_hash_but_for_those_listed() -> None:
    for spec in specs():
        for variant in spec.variants:
            for file in variant.files.values():
                is_pinned = len(getattr(file, "revision", "")) == 40 or getattr(file, "sha256", None)
                assert variant.is_mini or is_pinned or file.repo in UNPINNED, (spec.name, variant.name)


def test_a_full_name_means_its_variant() -> None:
    model, variant = resolve("hpsv2:v2.0")
    assert (model.spec.name, variant.name) == ("hpsv2", "v2.0")


def test_a_bare_name_means_the_only_released_variant() -> None:
    assert resolve("imagereward")[1].name == "v1.0"


def test_a_bare_name_never_means_a_quirk_of_upstreams() -> None:
    assert resolve("grounding")[1].name == "fixed"
    assert resolve("hpsv3")[1].recipe == "hpsv3/sequential"
    assert resolve("grounding:t2i-r1")[1].quirk


def test_a_bare_name_with_two_released_variants_is_refused_with_the_candidates() -> None:
    with pytest.raises(UnknownRewardError, match=r"any of hpsv2:v2\.0, hpsv2:v2\.1, .*hpsv2:mini"):
        resolve("hpsv2")


def test_an_unknown_reward_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownRewardError, match="did you mean 'imagereward'"):
        resolve("image-reward")


def test_an_unknown_variant_is_refused_with_the_variants_there_are() -> None:
    with pytest.raises(UnknownRewardError, match=r"no variant 'v9' of hpsv2: there are hpsv2:v2\.0"):
        resolve("hpsv2:v9")


@pytest.mark.parametrize(
    ("device", "asked", "held"),
    [
        ("cpu", None, torch.float32),
        ("meta", None, torch.bfloat16),
        ("meta", torch.float16, torch.float16),
        ("cpu", torch.float64, torch.float64),
    ],
)
def test_without_a_dtype_weights_are_float32_on_a_cpu_and_the_specs_choice_elsewhere(
    monkeypatch: pytest.MonkeyPatch, device: str, asked: torch.dtype | None, held: torch.dtype
) -> None:
    monkeypatch.setattr(HPSv2, "spec", replace(HPSv2.spec, gpu_dtype="bfloat16"))
    model = load("hpsv2:mini", device=device, dtype=asked)
    assert model.dtype == held
    assert model.provenance()["dtype"] == str(held).removeprefix("torch.")


def test_a_loaded_model_knows_the_hashes_of_its_files() -> None:
    model = load("hpsv2:mini", device="cpu")
    assert set(model.weights_sha256) == {"checkpoint", "tokenizer"}
    assert model.provenance()["weights_sha256"] == model.weights_sha256["checkpoint"]
    assert "converted_sha256" not in model.provenance()


def test_a_checkpoint_of_pytorchs_is_recorded_with_its_converted_copy(tmp_path) -> None:
    mini = load("hpsv2:mini", device="cpu")
    torch.save({"state_dict": mini.net.state_dict()}, tmp_path / "model.pt")
    given = load("hpsv2:mini", device="cpu", weights=tmp_path / "model.pt").provenance()
    assert given["weights_sha256"] == sha256(tmp_path / "model.pt")
    assert given["converted_sha256"] not in ("", given["weights_sha256"])


def test_a_reward_is_identified_without_loading_it_as_loaded_it_says_itself() -> None:
    found = identify("hpsv2:mini")
    assert found == {key: load("hpsv2:mini", device="cpu").provenance()[key] for key in found}
    assert set(found) == {"reward", "variant", "recipe", "weights_sha256"}
