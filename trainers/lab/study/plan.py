"""Which runs a study has, and what each is told."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rewardzoo.trainers.lab.study.settings import JUDGE, Place
from rewardzoo.trainers.pair_sources import ITERATIVE

CANDIDATES, PROMPTS, ROUNDS = "candidates per prompt", "prompts", "rounds"
_CANDIDATES = (4, 8, 16)
_FEW_PROMPTS = 16
_SAVES = 4
# Runs are shorter than those that the configurations are made for: at most a fifth of one warms up.
_WARM_UP = 5


@dataclass(frozen=True)
class Planned:
    """A run: its folder below `runs`, and settings over the configuration of its algorithm.

    Of an `axis` it has a `value`, all else as in the runs that the algorithms are compared by.
    """

    name: str
    algorithm: str
    reward: str
    seed: int
    settings: tuple[str, ...]
    axis: str = ""
    value: int = 0


@dataclass(frozen=True)
class Sizes:
    """How long runs are, so that both algorithms see about as many images.

    GRPO takes `grpo_steps`; DPO `rounds` of `round_steps` each.
    """

    grpo_steps: int
    rounds: int
    round_steps: int
    step_images: int
    round_images: int

    @property
    def dpo_steps(self) -> int:
        """Steps of a DPO run."""
        return self.rounds * self.round_steps


def sizes(place: Place) -> Sizes:
    """Work out the lengths of the runs."""
    grpo, pairs = place.grpo.grpo, place.dpo.pairs
    step_images = grpo.prompts_per_step * grpo.group_size
    round_images = pairs.prompts_per_round * pairs.candidates
    rounds = max(1, round(place.settings.steps * step_images / round_images))
    round_steps = place.dpo.run.steps // pairs.rounds if pairs.source == ITERATIVE else 1
    return Sizes(place.settings.steps, rounds, round_steps, step_images, round_images)


def plan(place: Place) -> list[Planned]:
    """List all runs: each algorithm on each reward and seed, then the axes on one reward."""
    main = [
        Planned(
            f"main/{algorithm}/{_slug(reward)}/{seed}",
            algorithm,
            reward,
            seed,
            _told(place, algorithm, reward, seed),
        )
        for algorithm in ("grpo", "dpo")
        for reward in place.settings.rewards
        for seed in range(place.settings.seeds)
    ]
    return [*main, *_axes(place)]


def scaling_reward(place: Place) -> str:
    """Return the reward of the axes: the one that the configurations are made for, if it is in."""
    rewards = place.settings.rewards
    return place.tuned_for if place.tuned_for in rewards else rewards[0]


def base_values(place: Place) -> Mapping[tuple[str, str], int]:
    """Return what value of each axis the runs have that the algorithms are compared by."""
    found = {
        (CANDIDATES, "grpo"): place.grpo.grpo.group_size,
        (CANDIDATES, "dpo"): place.dpo.pairs.candidates,
    }
    for algorithm, config in (("grpo", place.grpo), ("dpo", place.dpo)):
        if config.prompts.count:
            found[PROMPTS, algorithm] = config.prompts.count
    if place.dpo.pairs.source == ITERATIVE:
        found[ROUNDS, "dpo"] = sizes(place).rounds
    return found


def _axes(place: Place) -> Iterator[Planned]:
    reward = scaling_reward(place)
    for (axis, algorithm), base in base_values(place).items():
        for value in _values(axis, base):
            for seed in range(place.settings.scaling_seeds):
                settings = (*_told(place, algorithm, reward, seed), *_scaled(place, axis, algorithm, value))
                name = f"scaling/{_slug(axis)}/{value}/{algorithm}/{_slug(reward)}/{seed}"
                yield Planned(name, algorithm, reward, seed, settings, axis, value)


def _values(axis: str, base: int) -> list[int]:
    """Return the values of an axis that are yet to be run."""
    if axis == CANDIDATES:
        return [value for value in _CANDIDATES if value != base]
    if axis == PROMPTS:
        return [_FEW_PROMPTS] if base > _FEW_PROMPTS else []
    divisors = [value for value in range(2, base) if base % value == 0]
    few = min(divisors, key=lambda value: abs(math.log(value**2 / base)), default=1)
    return sorted({1, few} - {base})


def _scaled(place: Place, axis: str, algorithm: str, value: int) -> tuple[str, ...]:
    """Set an axis to a value, the number of images and of pairs unchanged."""
    length, pairs = sizes(place), place.dpo.pairs
    if axis == PROMPTS:
        return (f"prompts.count={value}",)
    if axis == ROUNDS:
        prompts = pairs.prompts_per_round * length.rounds // value
        return (f"pairs.rounds={value}", f"pairs.prompts_per_round={prompts}")
    if algorithm == "grpo":
        return (f"grpo.group_size={value}", f"grpo.prompts_per_step={max(1, length.step_images // value)}")
    of_prompt = max(1, pairs.per_prompt * value // pairs.candidates) if pairs.mode != "best_worst" else 1
    return (
        f"pairs.candidates={value}",
        f"pairs.prompts_per_round={max(1, length.round_images // value)}",
        f"pairs.per_prompt={of_prompt}",
    )


def _told(place: Place, algorithm: str, reward: str, seed: int) -> tuple[str, ...]:
    """Return what every run of an algorithm on a reward is told."""
    length = sizes(place)
    steps = length.grpo_steps if algorithm == "grpo" else length.dpo_steps
    config = place.grpo if algorithm == "grpo" else place.dpo
    counts = [
        f"evaluation.sets.{name}.count={place.settings.evaluation_prompts}" for name in config.evaluation.sets
    ]
    rounds = [f"pairs.rounds={length.rounds}"] if algorithm == "dpo" else []
    return (
        f"run.seed={seed}",
        f"run.steps={steps}",
        f"run.save_every={max(1, steps // _SAVES)}",
        f"optimizer.warmup_steps={min(config.optimizer.warmup_steps, steps // _WARM_UP)}",
        "run.keep=1",
        f"run.grid_every={steps}",
        "run.threads=1",
        "run.trackers=[]",
        f"evaluation.every={steps}",
        *counts,
        "rewards.url=local",
        f"rewards.weights={{{reward!r}: 1.0}}",
        f"rewards.held_out=[{JUDGE!r}]",
        *rounds,
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())
