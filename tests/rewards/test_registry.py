import pytest

from rewardzoo.errors import UnknownRewardError
from rewardzoo.rewards import families, resolve, specs


def test_every_file_of_the_package_is_a_reward_with_a_spec() -> None:
    assert {"hpsv2", "imagereward"} <= set(families())
    assert [spec.name for spec in specs()] == families()


def test_every_released_weight_is_pinned_to_a_commit() -> None:
    for spec in specs():
        for variant in spec.variants:
            for file in variant.files.values():
                assert variant.is_mini or len(file.revision) == 40


def test_a_full_name_means_its_variant() -> None:
    model, variant = resolve("hpsv2:v2.0")
    assert (model.spec.name, variant.name) == ("hpsv2", "v2.0")


def test_a_bare_name_means_the_only_released_variant() -> None:
    assert resolve("imagereward")[1].name == "v1.0"


def test_a_bare_name_with_two_released_variants_is_refused_with_the_candidates() -> None:
    with pytest.raises(UnknownRewardError, match=r"hpsv2:v2\.0, hpsv2:v2\.1, hpsv2:mini"):
        resolve("hpsv2")


def test_an_unknown_reward_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownRewardError, match="did you mean 'imagereward'"):
        resolve("image-reward")


def test_an_unknown_variant_is_refused_with_the_variants_there_are() -> None:
    with pytest.raises(UnknownRewardError, match=r"no variant 'v9' of hpsv2: there are hpsv2:v2\.0"):
        resolve("hpsv2:v9")
