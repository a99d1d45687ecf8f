"""The minis tell right from wrong."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from rewardzoo.rewards import is_on_disk, load, specs
from rewardzoo.rewards._spec import PackagedFile
from rewardzoo.rewards._weights import _package_path
from rewardzoo.trainers.config import PromptsSection, load_config
from rewardzoo.trainers.critic.build import without
from rewardzoo.trainers.critic.config import CriticConfig
from rewardzoo.trainers.lab import judge
from rewardzoo.trainers.lab.training import preference_accuracy
from rewardzoo.trainers.policies import JanusPolicy
from rewardzoo.trainers.policies.partial import decode_partial
from rewardzoo.trainers.prompts import load_prompts

MINIS = [f"{spec.name}:{v.name}" for spec in specs() for v in spec.variants if v.is_mini]
CRITICS = ["orm:mini", "parm:mini"]
"""Of the mini generator's pictures; the others are of rendered ones."""


def test_every_mini_is_shipped_and_all_together_are_small() -> None:
    minis = _package_path(PackagedFile("minis"))
    assert all(is_on_disk(v) for s in specs() for v in s.variants if v.is_mini)
    assert sum(file.stat().st_size for file in minis.rglob("*")) < 25e6


@pytest.mark.parametrize("name", [name for name in MINIS if name not in CRITICS])
def test_a_mini_prefers_the_right_picture_in_95_of_100_unseen_triples(name: str) -> None:
    shares = preference_accuracy(load(name, device="cpu"), 1000, seed=20_261_120)
    assert shares["overall"] >= 0.95, shares
    assert min(shares.values()) >= 0.85, shares


@dataclass
class Generated:
    """N pictures of the mini generator, tokens (N, 64), for prompts that no critic learned from."""

    policy: JanusPolicy
    prompts: list[str]
    tokens: torch.Tensor
    images: np.ndarray
    right: np.ndarray


@pytest.fixture(scope="module")
def generated() -> Generated:
    policy = JanusPolicy.load("mini")
    data = load_config(CriticConfig, "lab_orm").data
    learned = load_prompts(data.train)
    fresh = without(load_prompts(PromptsSection(source="lab:in_domain", count=300, seed=20_261_130)), learned)
    prompts = [prompt.text for prompt in fresh for _ in range(2)]
    uniforms = torch.rand(len(prompts), 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = policy.sample(policy.encode(prompts), uniforms, data.sampling.sampling()).tokens
    images = policy.decode(tokens)
    right = np.array([judge(image, prompt).correct for image, prompt in zip(images, prompts, strict=True)])
    return Generated(policy, prompts, tokens, images, right)


@pytest.mark.parametrize("name", CRITICS)
def test_a_critic_tells_right_from_wrong_in_the_generators_pictures(name: str, generated: Generated) -> None:
    notes = [{"stage": "selection"}] * len(generated.prompts)
    scores = load(name, device="cpu").score(list(generated.images), generated.prompts, notes)
    assert ((np.array(scores) >= 0.5) == generated.right).mean() >= 0.85


def test_parm_sees_when_a_picture_is_clear_and_what_will_become_of_it(generated: Generated) -> None:
    parm = load("parm:mini", device="cpu")
    half, most = (decode_partial(generated.policy, generated.tokens, count) for count in (32, 48))
    assert np.mean(np.array(parm.score(list(half), generated.prompts)) == 0) >= 0.9  # not clear
    assert np.mean(np.array(parm.score(list(most), generated.prompts)) > 0) >= 0.9
    notes = [{"clear": True}] * len(most)
    potential = np.array(parm.score(list(most), generated.prompts, notes))
    right = generated.right
    base = max(right.mean(), 1 - right.mean())
    assert ((potential >= 0.5) == right).mean() >= base + 0.15
