"""What a study is told, and the folder that remembers it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from rewardzoo.trainers.config import Section, dump, load_config
from rewardzoo.trainers.dpo import DPOConfig
from rewardzoo.trainers.grpo import GRPOConfig

JUDGE = "lab:exact"
SPLITS = ("in_domain", "out_of_domain")
GIVE_UP_BELOW = 0.2
"""The end of a picture is soon drawn, so a path is given up when it is bad for sure, not when it may be."""
_FILE = "study.json"
# More of these is more runs, and leaves those as they are that there are.
_MAY_GROW = {"rewards", "seeds", "scaling_seeds"}
_GRPO_ALONE, _DPO_ALONE = ("grpo.",), ("dpo.", "pairs.")


class StudySettings(Section):
    """How large a study is.

    `steps` are GRPO's; DPO has as many rounds as see about as many images. `scaling_seeds` 0 leaves the
    axes out. `evaluation_prompts` are of each split, `pool_prompts` the first of them, which get `pool_size`
    images each to pick from and to search among; the search gives up paths with less potential than
    `give_up_below`. `overrides` are settings over those that ship.
    """

    rewards: tuple[str, ...] = Field(min_length=1)
    seeds: int = Field(default=3, ge=1)
    steps: int = Field(default=30, ge=1)
    scaling_seeds: int = Field(default=1, ge=0)
    evaluation_prompts: int = Field(default=200, ge=2)
    pool_prompts: int = Field(default=100, ge=2)
    pool_size: int = Field(default=16, ge=2)
    give_up_below: float = Field(default=GIVE_UP_BELOW, ge=0, le=1)
    overrides: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> StudySettings:
        if len(set(self.rewards)) != len(self.rewards) or JUDGE in self.rewards:
            raise ValueError(
                f"rewards must be different, and not the judge {JUDGE}: {', '.join(self.rewards)}"
            )
        if self.pool_prompts > self.evaluation_prompts:
            raise ValueError(
                f"pool_prompts are among evaluation_prompts: {self.pool_prompts} of {self.evaluation_prompts}"
            )
        if self.scaling_seeds > self.seeds:
            raise ValueError(
                f"an axis shares runs with the seeds: {self.scaling_seeds} are more than {self.seeds}"
            )
        return self


@dataclass(frozen=True)
class Place:
    """A study's folder: its settings, and the configurations that all its runs begin with."""

    folder: Path
    settings: StudySettings
    grpo: GRPOConfig
    dpo: DPOConfig

    @property
    def tuned_for(self) -> str:
        """The reward that the configurations are made for."""
        return next(iter(self.dpo.rewards.weights))

    def config(self, algorithm: str) -> Path:
        """Where the configuration of an algorithm stands."""
        return self.folder / "configs" / f"{algorithm}.yaml"

    @property
    def pool(self) -> Path:
        """The folder of the candidates, one below it a split."""
        return self.folder / "pool"


def begin(folder: Path, settings: StudySettings) -> Place:
    """Open a folder for a study, or the one that was begun there.

    Configurations are those that ship, as they are when a study begins; it goes on with them. Rewards and
    seeds may be others than before: runs that there are serve as they are.

    Raises:
        ValueError: another study was begun there; it names what differs.
        ConfigError: an override that the configurations do not take.
    """
    path = folder / _FILE
    if path.exists():
        before = StudySettings.model_validate_json(path.read_text())
        old, new = before.model_dump(mode="json"), settings.model_dump(mode="json")
        if differ := [
            f"{key} {old[key]}, now {new[key]}"
            for key in new
            if key not in _MAY_GROW and old[key] != new[key]
        ]:
            raise ValueError(
                f"{folder} holds a study begun with {'; '.join(differ)}: go on in the same words, or choose "
                "another --out"
            )
        _write(path, settings)
        return open_place(folder)
    grpo = load_config(GRPOConfig, "lab_grpo", _of(settings.overrides, _DPO_ALONE))
    dpo = load_config(DPOConfig, "lab_dpo", _of(settings.overrides, _GRPO_ALONE))
    if missing := [split for split in SPLITS if split not in grpo.evaluation.sets]:
        raise ValueError(f"lab_grpo must evaluate {', '.join(SPLITS)}, it lacks {', '.join(missing)}")
    place = Place(folder, settings, grpo, dpo)
    place.config("grpo").parent.mkdir(parents=True, exist_ok=True)
    place.config("grpo").write_text(dump(grpo))
    place.config("dpo").write_text(dump(dpo))
    _write(path, settings)
    return place


def open_place(folder: Path) -> Place:
    """Open a folder in which a study was begun."""
    settings = StudySettings.model_validate_json((folder / _FILE).read_text())
    configs = folder / "configs"
    return Place(
        folder,
        settings,
        load_config(GRPOConfig, configs / "grpo.yaml"),
        load_config(DPOConfig, configs / "dpo.yaml"),
    )


def _write(path: Path, settings: StudySettings) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_text(settings.model_dump_json(indent=1) + "\n")
    fresh.replace(path)


def _of(overrides: tuple[str, ...], not_of: tuple[str, ...]) -> list[str]:
    return [each for each in overrides if not each.startswith(not_of)]
