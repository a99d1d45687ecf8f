"""The settings of a critic's training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rewardzoo.trainers.config import (
    LoraSection,
    OptimizerSection,
    PolicySection,
    PromptsSection,
    SamplingSection,
    Section,
)
from rewardzoo.trainers.critic.records import Stage


class JudgeSection(Section):
    """Who labels pictures: `lab:exact`, a reward in this process (`url: local`) or a served one.

    Yes is a score of `threshold` and more: P(yes) of a vision-language model that is asked, for one.
    """

    reward: str
    url: str | list[str] = "local"
    threshold: float = 0.5
    timeout: float = Field(default=600.0, gt=0)


class DataSection(Section):
    """Which pictures are made, and what is asked about them.

    `steps` are shares of a picture's tokens at which it is shown unfinished; none for an outcome reward
    model. From `clear_from` on it is called clear, below `unclear_below` not, between neither.
    `unfinished_per_prompt` is of how many of a prompt's pictures, by default all. `reflections` adds what is
    wrong in words, where the judge says so. `folder` may hold data that was made elsewhere: `policy`,
    `judge` and `train` are left out then, and `held_out` names splits, without a source.
    """

    folder: Path
    policy: PolicySection | None = None
    sampling: SamplingSection = SamplingSection()
    judge: JudgeSection | None = None
    train: PromptsSection | None = None
    held_out: dict[str, PromptsSection | None] = Field(default={})
    images_per_prompt: int = Field(default=8, ge=1)
    prompts_per_part: int = Field(default=64, ge=1)
    steps: list[float] = Field(default=[])
    clear_from: float = Field(default=11 / 18, gt=0, le=1)
    unclear_below: float = Field(default=10 / 18, ge=0, le=1)
    unfinished_per_prompt: int | None = Field(default=None, ge=1)
    reflections: bool = False
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.unclear_below > self.clear_from:
            raise ValueError(
                f"unclear_below {self.unclear_below} must not be above clear_from {self.clear_from}"
            )
        if wrong := [share for share in self.steps if not 0 < share < 1]:
            raise ValueError(f"steps are shares of a picture between 0 and 1, got {wrong}")
        made = (self.policy, self.judge, self.train)
        if any(made) and not all(made):
            raise ValueError("policy, judge and train are all needed where data are to be made")
        if self.policy and (bare := [name for name, section in self.held_out.items() if section is None]):
            raise ValueError(f"held_out.{bare[0]} has no source, from whose prompts its data could be made")
        return self

    def is_clear(self, share: float) -> bool | None:
        """Say what is taught about a picture of which that share is there; None is nothing."""
        if share >= self.clear_from:
            return True
        return False if share < self.unclear_below else None


class ModelSection(Section):
    """What is trained, from which weights.

    `base` is a reward, `orm:llava-onevision-7b` or `orm:path/to/run`, whose form the trained one has;
    `weights` stands in for its published weights. With `loss: answers` it learns to answer yes or no, with
    `preference` to score the better picture of a prompt higher, `scale` times the difference.
    """

    base: str
    weights: Path | None = None
    loss: Literal["answers", "preference"] = "answers"
    scale: float = Field(default=1.0, gt=0)
    stages: list[Stage] = Field(default=["selection"], min_length=1)
    lora: LoraSection | None = None
    train_vision: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    weights_license: str = "as its base's"


class CriticRunSection(Section):
    """Length, seed, and what is kept in the folder `out`, which becomes the trained variant.

    Training ends when `patience` validations in a row were no better than the best, whose weights are kept.
    `validation_share` of the training's prompts is held back for that and for the temperatures.
    `resume: auto` goes on from the newest checkpoint. `workers` are processes that prepare pictures.
    """

    out: Path
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=32, ge=1)
    validate_every: int = Field(default=100, ge=1)
    patience: int = Field(default=3, ge=1)
    validation_share: float = Field(default=0.05, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(default=100, ge=1)
    keep: int = Field(default=2, ge=1)
    resume: Literal["auto", "never"] = "auto"
    trackers: list[Literal["tensorboard", "wandb"]] = Field(default=[])
    project: str = "rewardzoo"
    threads: int | None = Field(default=None, ge=1)
    workers: int = Field(default=0, ge=0)


class CriticConfig(Section):
    """What `rewardzoo train critic` is told."""

    data: DataSection
    model: ModelSection
    optimizer: OptimizerSection
    run: CriticRunSection
