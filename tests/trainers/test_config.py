from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rewardzoo.trainers.config import CONFIGS, ConfigError, dump, load_config
from rewardzoo.trainers.critic.config import CriticConfig
from rewardzoo.trainers.grpo import GRPOConfig


def said(configured: Callable[..., GRPOConfig], *overrides: str) -> str:
    with pytest.raises(ConfigError) as found:
        configured(*overrides)
    return str(found.value)


def test_an_override_reaches_a_setting_and_leaves_its_neighbours(configured) -> None:
    config = configured("optimizer.lr=1e-6", "grpo.beta=0", "rewards.held_out=[lab:exact]")
    assert (config.optimizer.lr, config.grpo.beta, config.rewards.held_out) == (1e-6, 0, ["lab:exact"])
    assert config.optimizer.micro_batch_size == 8


def test_a_mapping_with_names_of_rewards_is_replaced_whole(configured) -> None:
    config = configured('rewards.weights={"hpsv2:v2.1": 1, "imagereward": 0.5}')
    assert config.rewards.weights == {"hpsv2:v2.1": 1.0, "imagereward": 0.5}


def test_a_section_that_is_off_can_be_set_by_its_settings(configured) -> None:
    lora = configured("policy.lora.rank=4").policy.lora
    assert lora is not None
    assert lora.rank == 4


def test_every_wrong_setting_has_one_line_with_its_name_and_value(configured) -> None:
    lines = said(configured, "sampling.guidance_scale=-1", "optimizer.lr=fast", "grpo.group_size=1").split(
        "\n"
    )
    assert lines[0] == "tiny.yaml cannot be used:"
    assert sorted(lines[1:]) == [
        "  grpo.group_size: input should be greater than or equal to 2; got 1",
        "  optimizer.lr: input should be a valid number, unable to parse string as a number; got 'fast'",
        "  sampling.guidance_scale: input should be greater than or equal to 0; got -1",
    ]


def test_an_unknown_setting_is_refused_with_those_that_there_are(configured) -> None:
    message = said(configured, "run.stepz=3")
    assert "run.stepz: no such setting, did you mean steps?" in message
    assert "out, steps, seed" in message
    assert "policy.lora.rnk: no such setting, did you mean rank?" in said(configured, "policy.lora.rnk=3")


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("rewards.normalize={lab:exact-share: nope}", "no normaliser 'nope': there are running_z, group_z"),
        ("rewards.held_out=[lab:exact-share]", "is held out and cannot count too"),
        ("rewards.weights={lab:exact: 0}", "the weight of lab:exact is 0"),
        ("sampling.logp_mode=both", "'cond', 'cfg' or 'cfg_detach_uncond'; got 'both'"),
        ("run.trackers=[mlflow]", "'tensorboard' or 'wandb'; got 'mlflow'"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(configured, override: str, what: str) -> None:
    assert what in said(configured, override)


@pytest.mark.parametrize(
    "override", ["steps", "=3", "run..steps=3", "policy.name_or_path.deep=1", "run.out=[a"]
)
def test_an_override_that_cannot_be_read_is_named(configured, override: str) -> None:
    assert override.partition("=")[0] in said(configured, override)


def test_a_configuration_that_does_not_exist_is_answered_with_those_that_ship() -> None:
    with pytest.raises(ConfigError, match="lab_grpo"):
        load_config(GRPOConfig, "lab_grp")


def test_what_is_written_down_of_a_run_reads_back_the_same(configured, tmp_path: Path) -> None:
    config = configured("policy.lora.rank=4", 'rewards.normalize={"lab:exact-share": {scale: 2}}')
    written = tmp_path / "written.yaml"
    written.write_text(dump(config))
    assert load_config(GRPOConfig, written) == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_grpo.yaml")), ids=lambda path: path.stem)
def test_the_configurations_that_ship_are_valid(path: Path) -> None:
    assert load_config(GRPOConfig, path.stem).run.steps > 0


def test_the_labs_critics_learn_from_the_same_data() -> None:
    orm, parm = (load_config(CriticConfig, f"lab_{name}") for name in ("orm", "parm"))
    assert orm.data == parm.data  # so that pictures are made once
    assert parm.model.weights == orm.run.out / "model"
