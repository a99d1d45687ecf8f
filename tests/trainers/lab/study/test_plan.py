"""Which runs a study has, and that their configurations take what they are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardzoo.trainers.config import load_config
from rewardzoo.trainers.dpo import DPOConfig
from rewardzoo.trainers.grpo import GRPOConfig
from rewardzoo.trainers.lab.study.plan import CANDIDATES, PROMPTS, ROUNDS, plan, scaling_reward, sizes
from rewardzoo.trainers.lab.study.recipes import RECIPES, default_rewards, shipped
from rewardzoo.trainers.lab.study.settings import Place, StudySettings, begin, open_place

REWARDS = ("hpsv2:mini", "imagereward:mini", "blipvqa:mini", "clipscore:mini")
CONFIGS = {"grpo": GRPOConfig, "dpo": DPOConfig}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    sizes_of = (
        "grpo.prompts_per_step=16",
        "grpo.group_size=8",
        "pairs.source=iterative",
        "pairs.prompts_per_round=32",
        "pairs.candidates=8",
        "pairs.mode=topk_bottomk",
        "pairs.per_prompt=4",
        "prompts.count=4096",
    )
    # The lengths that ship may change; these are a round a step.
    lengths = ("run.steps=110", "pairs.rounds=110")
    return begin(
        tmp_path / "study", StudySettings(rewards=REWARDS, steps=32, overrides=(*sizes_of, *lengths))
    )


def configs(place: Place) -> dict[str, GRPOConfig | DPOConfig]:
    """Read each run's configuration as its process will."""
    return {
        each.name: load_config(
            CONFIGS[each.algorithm],
            place.config(each.algorithm),
            [f"run.out={place.folder / each.name}", *each.settings],
        )
        for each in plan(place)
    }


def test_both_algorithms_run_on_each_reward_and_seed_and_see_as_many_images(place: Place) -> None:
    found = configs(place)
    main = [name for name in found if name.startswith("main/")]
    assert len(main) == 2 * 4 * 3
    grpo, dpo = found["main/grpo/blipvqa-mini/2"], found["main/dpo/blipvqa-mini/2"]
    assert isinstance(grpo, GRPOConfig)
    assert isinstance(dpo, DPOConfig)
    for each in (grpo, dpo):
        assert each.rewards.weights == {"blipvqa:mini": 1.0}
        assert each.rewards.held_out == ["lab:exact"]
        assert (each.run.seed, each.run.threads, each.evaluation.every) == (2, 1, each.run.steps)
    images = grpo.run.steps * grpo.grpo.prompts_per_step * grpo.grpo.group_size
    assert images == 32 * 128 == dpo.pairs.rounds * dpo.pairs.prompts_per_round * dpo.pairs.candidates


def test_along_an_axis_only_the_axis_changes(place: Place) -> None:
    found = configs(place)
    assert scaling_reward(place) == place.tuned_for
    length = sizes(place)
    by_axis: dict[tuple[str, str], set[int]] = {}
    for each in plan(place):
        if not each.axis:
            continue
        by_axis.setdefault((each.axis, each.algorithm), set()).add(each.value)
        config = found[each.name]
        if isinstance(config, GRPOConfig):
            images = config.run.steps * config.grpo.prompts_per_step * config.grpo.group_size
            assert images == 32 * 128
            continue
        pairs = config.pairs
        assert pairs.rounds * pairs.prompts_per_round * pairs.candidates == 32 * 128
        assert pairs.rounds * pairs.prompts_per_round * pairs.per_prompt == length.rounds * 32 * 4
        assert (config.run.steps, pairs.batch_size) == (length.dpo_steps, place.dpo.pairs.batch_size)
    assert by_axis == {
        (CANDIDATES, "grpo"): {4, 16},
        (CANDIDATES, "dpo"): {4, 16},
        (PROMPTS, "grpo"): {16},
        (PROMPTS, "dpo"): {16},
        (ROUNDS, "dpo"): {1, 4},
    }


def test_the_default_rewards_are_shipped_and_say_how_they_were_trained() -> None:
    found = default_rewards()
    assert len(found) == 5
    assert set(found) <= shipped() & set(RECIPES)


def test_a_study_goes_on_with_what_it_began_with(tmp_path: Path) -> None:
    settings = StudySettings(rewards=("hpsv2:mini",), overrides=("optimizer.lr=0.5",))
    begun = begin(tmp_path, settings)
    assert begun.grpo.optimizer.lr == begun.dpo.optimizer.lr == 0.5
    # What ships may change meanwhile.
    path = begun.config("grpo")
    path.write_text(path.read_text().replace("lr: 0.5", "lr: 0.25"))
    assert begin(tmp_path, settings).grpo.optimizer.lr == 0.25
    more = settings.model_copy(update={"seeds": 4, "rewards": REWARDS})
    assert begin(tmp_path, more).settings == open_place(tmp_path).settings == more
    with pytest.raises(ValueError, match="begun with steps 30, now 2: go on in the same words"):
        begin(tmp_path, settings.model_copy(update={"steps": 2}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rewards": ("lab:exact",)}, "not the judge"),
        ({"rewards": ("hpsv2:mini", "hpsv2:mini")}, "must be different"),
        ({"rewards": REWARDS, "pool_prompts": 300}, "300 of 200"),
        ({"rewards": REWARDS, "scaling_seeds": 4}, "4 are more than 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudySettings.model_validate(settings)
