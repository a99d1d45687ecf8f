"""The minis tell right from wrong."""

import pytest

from rewardzoo.rewards import is_on_disk, load, specs
from rewardzoo.rewards._spec import PackagedFile
from rewardzoo.rewards._weights import _package_path
from rewardzoo.trainers.lab.training import preference_accuracy

MINIS = [f"{spec.name}:{v.name}" for spec in specs() for v in spec.variants if v.is_mini]


def test_every_mini_is_shipped_and_all_together_are_small() -> None:
    minis = _package_path(PackagedFile("minis"))
    assert all(is_on_disk(v) for s in specs() for v in s.variants if v.is_mini)
    assert sum(file.stat().st_size for file in minis.rglob("*")) < 25e6


@pytest.mark.parametrize("name", MINIS)
def test_a_mini_prefers_the_right_picture_in_95_of_100_unseen_triples(name: str) -> None:
    shares = preference_accuracy(load(name, device="cpu"), 1000, seed=20_261_120)
    assert shares["overall"] >= 0.95, shares
    assert min(shares.values()) >= 0.85, shares
