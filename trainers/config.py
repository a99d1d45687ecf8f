"""The settings of a training: YAML, `key.sub=value` over it, and errors that name the setting."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rewardzoo.clients import Mixture
from rewardzoo.clients.mixing import Reduction
from rewardzoo.clients.normalizers import PRESETS, Affine, GroupZ, Normalizer, RunningZ
from rewardzoo.trainers.policies.lora import LoRA
from rewardzoo.trainers.policies.policy import LogpMode, Sampling

CONFIGS = Path(__file__).parent / "configs"
"""Configurations that ship with the package, named without folder and ending: `--config lab_grpo`."""

_LEARNING: Mapping[str, Callable[[], Normalizer]] = {"running_z": RunningZ, "group_z": GroupZ}


class ConfigError(ValueError):
    """A configuration that cannot be used; the message has one line a setting that is wrong."""


class Section(BaseModel):
    """Settings that belong together. Unknown ones are refused; none changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraSection(Section):
    """Low-rank adapters (peft) on linear layers of the language model, which alone are trained then."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    targets: tuple[str, ...] = LoRA.targets


class PolicySection(Section):
    """What is trained, and in which numbers.

    `dtype` is that of the weights in memory; `mixed_precision: bf16` computes in bfloat16 over float32
    weights, which keeps updates that bfloat16 weights would round away at small learning rates. Without
    `train_head` the language model alone is trained, and what reads and writes image tokens stays as it is.
    `attention` is `transformers`' `attn_implementation` (`flash_attention_2`, `sdpa`, `eager`), by default
    the best that is installed.
    """

    name_or_path: str
    lora: LoraSection | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    train_head: bool = True
    attention: str | None = None


class SamplingSection(Section):
    """How images are sampled, `batch_size` at a time in each process; see `Sampling` for the rest."""

    guidance_scale: float = Field(default=5.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    logp_mode: LogpMode = "cond"
    batch_size: int = Field(default=32, ge=1)

    def sampling(self) -> Sampling:
        """Return them as a policy takes them."""
        return Sampling(self.guidance_scale, self.temperature, self.logp_mode)


class PromptsSection(Section):
    """Where prompts come from; see `rewardzoo.trainers.prompts`.

    `source` is `lab:in_domain`, `lab:out_of_domain`, or files (a path or a glob) of text, JSON lines or
    Parquet. `count` limits files, and is how many the lab makes (1,024 by default) from `seed`.
    """

    source: str
    count: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    prompt_column: str = "prompt"
    metadata_column: str = "metadata"


class AffineSection(Section):
    """`scale * score + offset`."""

    scale: float = 1.0
    offset: float = 0.0


class RewardsSection(Section):
    """What images are scored by.

    `url` is a server's, a list of replicas, or `local` for models in this process. `weights` count,
    `held_out` are scored, logged and never trained on. Names that begin with `lab:` are judged in this
    process, whatever `url` is. `timeout` is how many seconds a step waits for a server that is down.

    `overlap: false` waits for the scores of each batch of images before anything else is done, to measure
    what overlap saves.
    """

    url: str | list[str] = "local"
    weights: dict[str, float] = Field(min_length=1)
    held_out: list[str] = []
    normalize: dict[str, str | AffineSection] = {}
    reduce: Reduction = "sum"
    timeout: float = Field(default=600.0, gt=0)
    max_in_flight: int = Field(default=4, ge=1)
    device: str = "auto"
    overlap: bool = True

    @model_validator(mode="after")
    def _can_be_mixed(self) -> Self:
        self.mixture()
        return self

    def mixture(self) -> Mixture:
        """Build the mixture; each call one of its own, for running normalisers learn."""
        return Mixture(
            self.weights,
            normalize={name: _normalizer(given) for name, given in self.normalize.items()},
            reduce=self.reduce,
            held_out=self.held_out,
        )


class OptimizerSection(Section):
    """AdamW over what is trained, its schedule, and the clip of the global gradient norm.

    `micro_batch_size` is how many images (pairs, in DPO) each process takes through one forward and
    backward; it changes memory and speed, never the update.
    """

    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    micro_batch_size: int = Field(default=8, ge=1)


class EvaluationSection(Section):
    """Fixed prompts that are sampled and scored `every` so many steps, before the first and after the last.

    The same numbers are drawn each time, so that two evaluations differ by the policy alone. Each set is
    scored by every reward and held-out judge, as `eval/SET/REWARD`.
    """

    every: int = Field(default=50, ge=1)
    images_per_prompt: int = Field(default=1, ge=1)
    sets: dict[str, PromptsSection] = {}


class RunSection(Section):
    """Length, seed, and what is kept in the folder `out`.

    `resume: auto` goes on from the newest checkpoint in `out`, and begins where there is none; `never`
    refuses a folder that holds a run. `keep` is how many checkpoints stay. `trackers` are accelerate's;
    `metrics.jsonl` is always written.
    """

    out: Path
    steps: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(default=100, ge=1)
    keep: int = Field(default=2, ge=1)
    resume: Literal["auto", "never"] = "auto"
    grid_every: int = Field(default=50, ge=1)
    log_every: int = Field(default=1, ge=1)
    trackers: list[Literal["tensorboard", "wandb"]] = ["tensorboard"]
    project: str = "rewardzoo"
    threads: int | None = Field(default=None, ge=1)


class RefreshSection(Section):
    """A critic that goes on learning while the policy does, `every` so many steps.

    `config` is a file as for `rewardzoo train critic`, or the name of one that ships. Its `model.base` is one
    of `rewards.weights`; its data are made by the policy as it is then, whatever its `data.policy` names. The
    `keep` versions before the one that counts stay in memory as held-out judges, `critic-000` and so on. All
    of them score in this process, whatever `rewards.url` is.
    """

    config: str
    every: int = Field(ge=1)
    keep: int = Field(default=1, ge=1)


class TrainConfig(Section):
    """What every trainer is told; each adds a section of its own."""

    policy: PolicySection
    sampling: SamplingSection = SamplingSection()
    prompts: PromptsSection
    rewards: RewardsSection
    optimizer: OptimizerSection
    evaluation: EvaluationSection = EvaluationSection()
    critic: RefreshSection | None = None
    run: RunSection


Config = TypeVar("Config", bound=TrainConfig)
AnySection = TypeVar("AnySection", bound=Section)


def load_config(kind: type[AnySection], source: str | Path, overrides: Sequence[str] = ()) -> AnySection:
    """Read a configuration from a file, or the one of that name that ships, with `key.sub=value` over it.

    A value is YAML; `rewards.weights={"hpsv2:mini": 1, "lab:exact": 2}` replaces the whole mapping.

    Raises:
        ConfigError: the file cannot be read, or settings are unknown, missing or wrong.
    """
    path = _find(source)
    try:
        settings = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must be a YAML mapping of sections, got {type(settings).__name__}")
    for override in overrides:
        _set(settings, override)
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        lines = [_line(kind, each) for each in error.errors(include_url=False)]
        raise ConfigError("\n".join([f"{path.name} cannot be used:", *lines])) from error


def dump(config: TrainConfig) -> str:
    """Return a configuration as YAML that `load_config` reads."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix or path.exists():
        return path
    shipped = CONFIGS / f"{path}.yaml"
    if not shipped.is_file():
        names = ", ".join(sorted(each.stem for each in CONFIGS.glob("*.yaml")))
        raise ConfigError(f"no configuration {str(source)!r}: give a YAML file, or one of {names}")
    return shipped


def _set(settings: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    *parents, last = key.split(".")
    if not (sign and last and all(parents)):
        raise ConfigError(f"{override!r} must look like section.setting=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {text!r} is not YAML ({error})") from error
    at = settings
    for parent in parents:
        below = at.setdefault(parent, {})
        if below is None:
            below = at[parent] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"{key}: {parent} is {below!r} and has no settings below it")
        at = below
    at[last] = value


def _line(kind: type[BaseModel], error: Mapping[str, Any]) -> str:
    """Say one of pydantic's errors as `section.setting: what is wrong, what is allowed`."""
    place = [str(key) for key in error["loc"]]
    where = ".".join(place)
    if error["type"] == "missing":
        return f"  {where}: is missing"
    if error["type"] == "extra_forbidden":
        known = _settings_at(kind, place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        return f"  {where}: no such setting{hint} There are: {', '.join(known)}"
    said = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # it names the value itself
        return f"  {where}: {said}"
    return f"  {where}: {said[0].lower() + said[1:]}; got {error['input']!r:.80}"


def _settings_at(kind: type[BaseModel], place: Sequence[str]) -> list[str]:
    for name in place:
        field = kind.model_fields.get(name)
        inner = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        below = [each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)]
        kind = below[0] if below else kind
    return list(kind.model_fields)


def _normalizer(given: str | AffineSection) -> Normalizer:
    if isinstance(given, AffineSection):
        return Affine(given.scale, given.offset)
    if given in _LEARNING:
        return _LEARNING[given]()
    if given not in PRESETS:
        raise ValueError(f"no normaliser {given!r}: there are {', '.join([*_LEARNING, *PRESETS])}")
    return PRESETS[given]
