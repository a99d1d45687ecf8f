"""What is known of a reward before any weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from rewardzoo.resize import ShortestAndCrop


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository, pinned to a commit.

    `sha256` is checked where it is known; else the hash is recorded at the first download and held to.
    """

    repo: str
    name: str
    revision: str
    sha256: str | None = None


@dataclass(frozen=True)
class HubFolder:
    """Files of a Hugging Face repository, pinned to a commit: sharded weights, configuration, tokenizer.

    On disk it is a folder, as `from_pretrained` takes it.
    """

    repo: str
    revision: str
    patterns: tuple[str, ...] = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model")

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repo.rpartition("/")[2]


@dataclass(frozen=True)
class PackagedFile:
    """A file or folder shipped inside rewardzoo, its name relative to `rewards/`."""

    name: str


@dataclass(frozen=True)
class WebFile:
    """A file of another web server than the hub's, pinned to its content by `sha256`."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """The file's name: the last part of its address."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class LocalPath:
    """A file or folder of a variant that was trained here, or downloaded whole."""

    path: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePath(self.path).name


Source = HubFile | HubFolder | PackagedFile | WebFile | LocalPath
"""Where a file or a folder of a variant comes from."""


@dataclass(frozen=True)
class Variant:
    """One row of a reward: its weights and how they are used.

    `recipe` names the exact computation (preprocessing, prompt, formula): two variants with one recipe
    differ in weights alone. `config` holds what the reward's own loader needs to build the architecture.
    A `quirk` repeats a fault of upstream's, what its sampling comes to, or another era of its libraries; a
    bare name never means one. `resize` is what `prepare_image` does to an image first, where a caller may
    do it beforehand without moving a score by a bit.
    """

    name: str
    recipe: str
    files: Mapping[str, Source]
    weights_license: str
    config: Mapping[str, object] = field(default_factory=dict)
    quirk: bool = False
    resize: ShortestAndCrop | None = None

    @property
    def is_mini(self) -> bool:
        """Whether the weights are the small ones shipped in the package."""
        return self.name == "mini"


@dataclass(frozen=True)
class RewardSpec:
    """A reward as its users see it.

    `score_range` is what scores lie in, in the reward's raw upstream scale: a hard bound where the formula
    has one, else the usual span. `max_batch` is how many items one forward takes, and `max_batch_cost` what
    they may cost together by `RewardModel.cost`, where images differ in that. `gpu_dtype` names what
    the weights are held in on a GPU unless the caller says otherwise; on a CPU it is float32. `uses_prompt`
    is False for a reward of the image alone: it takes prompts and does not read them.
    """

    name: str
    title: str
    paper: str
    code_license: str
    score_range: tuple[float, float]
    variants: tuple[Variant, ...]
    higher_is_better: bool = True
    differentiable: bool = True
    max_batch: int = 64
    max_batch_cost: int | None = None
    gpu_dtype: str = "float32"
    uses_prompt: bool = True

    def __post_init__(self) -> None:
        names = [v.name for v in self.variants]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.name}: variants must differ in name, got {names}")
