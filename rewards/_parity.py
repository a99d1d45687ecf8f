"""Parity: upstream's scores, kept as fixtures, against ours of the same files through the same loader.

A case is a folder with `case.json` and a checkpoint in upstream's format, written by upstream's own code
(`tests/parity/oracles`). `docs/parity.md` has the results.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rewardzoo.errors import ItemError, RewardZooError
from rewardzoo.rewards._model import Outcome, RewardModel
from rewardzoo.rewards._registry import resolve

_FLOOR = 1e-3
"""A score smaller than this share of the case's largest is compared on the scale of that share."""


@dataclass(frozen=True)
class Pair:
    """One row of a case: what upstream was asked, and its answer.

    `error` is part of the message that ours must give where a pair cannot be scored; `score` is then None.
    """

    image: Path
    prompt: str
    metadata: Mapping[str, Any]
    score: float | None
    details: Mapping[str, Any]
    error: str | None


@dataclass(frozen=True)
class Case:
    """A fixture: upstream's scores of one small model, or with `--full` of one as large as the released.

    `seconds`, `cpu_seconds` and `peak_gib` are what upstream's own pass took, where it was measured.
    """

    name: str
    reward: str
    recipe: str
    config: Mapping[str, Any]
    files: Mapping[str, Path]
    oracle: Mapping[str, Any]
    tolerance: float
    pairs: Sequence[Pair]
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_gib: float | None = None

    @property
    def upstream(self) -> str:
        """The oracle's name, with its commit where it is a repository's."""
        commit = self.oracle.get("commit")
        return f"{self.oracle['name']} at {commit[:10]}" if commit else str(self.oracle["name"])

    @property
    def environment(self) -> str:
        """The oracle's environment in words, e.g. "python 3.11.7, torch 2.13.0"."""
        return ", ".join(f"{k} {v}" for k, v in self.oracle.get("environment", {}).items())


@dataclass(frozen=True)
class Result:
    """A case compared. `difference` is the largest relative one, of scores and numeric details."""

    case: str
    reward: str = ""
    recipe: str = ""
    oracle: str = ""
    environment: str = ""
    pairs: int = 0
    difference: float = float("nan")
    tolerance: float = 0.0
    dtype: str = ""
    faults: Sequence[str] = field(default_factory=tuple)

    @property
    def ok(self) -> bool:
        """Whether every pair agrees."""
        return not self.faults


def find_cases(fixtures: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the case folders under `fixtures`, sorted.

    `names` keep those of a family (`hpsv2`), a reward (`hpsv2:v2.1`), a recipe or a folder of that name.

    Raises:
        ValueError: there are no cases, or none for one of the names.
    """
    folders = sorted(path.parent for path in fixtures.glob("*/case.json"))
    if not folders:
        raise ValueError(
            f"no parity cases in {fixtures}. They are in the repository and not in the wheel: clone it and "
            "run there, or give --fixtures DIR."
        )
    chosen: set[Path] = set()
    for name in names:
        found = {folder for folder in folders if name in _names(folder)}
        if not found:
            known = ", ".join(folder.name for folder in folders)
            raise ValueError(f"no parity case for {name!r}: there are {known}")
        chosen |= found
    return sorted(chosen) if names else folders


def _names(folder: Path) -> set[str]:
    try:
        row = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        reward, recipe = str(row["reward"]), str(row["recipe"])
    except (ValueError, KeyError, TypeError):
        return {folder.name}
    return {folder.name, reward, reward.partition(":")[0], recipe}


def read_case(folder: Path) -> Case:
    """Read a case; images without a path are those of `inputs`, beside the folder of all cases.

    Raises:
        ValueError: the file lacks something.
    """
    try:
        row = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        return Case(
            name=folder.name,
            reward=row["reward"],
            recipe=row["recipe"],
            config=row.get("config", {}),
            files={key: folder / path for key, path in row["files"].items()},
            oracle=row["oracle"],
            tolerance=row["tolerance"],
            pairs=[_pair(folder, pair) for pair in row["pairs"]],
            seconds=row.get("seconds"),
            cpu_seconds=row.get("cpu_seconds"),
            peak_gib=row.get("peak_gib"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'case.json'} is not a parity case: {error!r}") from error


def _pair(folder: Path, row: Mapping[str, Any]) -> Pair:
    name = row["image"]
    image = folder / name if "/" in name else folder.parent.parent / "inputs" / name
    return Pair(
        image,
        row["prompt"],
        row.get("metadata") or {},
        row.get("score"),
        row.get("details") or {},
        row.get("error"),
    )


def load_case(case: Case) -> RewardModel:
    """Load the case's model on the CPU in float32, by the code that loads the released weights.

    Raises:
        ValueError: the variant's recipe is not the case's.
        RewardZooError: the files are not what the loader takes.
    """
    model_class, variant = resolve(case.reward)
    if variant.recipe != case.recipe:
        raise ValueError(f"{case.reward} has the recipe {variant.recipe!r}, the case {case.recipe!r}")
    config = {**variant.config, **case.config}
    model = model_class.load(replace(variant, config=config), case.files)
    return model.to("cpu", torch.float32)  # some loaders leave the dtype that is stored


def score_case(model: RewardModel, case: Case) -> list[Outcome]:
    """Score the case's pairs, images opened as a caller would open them."""
    opened = {path: _open(path) for path in {pair.image for pair in case.pairs}}
    return model.score_items(
        [opened[pair.image] for pair in case.pairs],
        [pair.prompt for pair in case.pairs],
        [pair.metadata for pair in case.pairs],
    )


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def check_case(folder: Path) -> Result:
    """Score a case with our code and compare; whatever goes wrong is a fault of the result."""
    result = Result(folder.name)
    try:
        case = read_case(folder)
        result = replace(
            result,
            reward=case.reward,
            recipe=case.recipe,
            oracle=case.upstream,
            environment=case.environment,
            pairs=len(case.pairs),
            tolerance=case.tolerance,
        )
        model = load_case(case)
        return compare(case, score_case(model, case), replace(result, dtype=_dtype(model)))
    except (RewardZooError, ValueError, KeyError, OSError, RuntimeError, ImportError) as error:
        return replace(result, faults=(f"{type(error).__name__}: {error}",))


def compare(case: Case, outcomes: Sequence[Outcome], result: Result) -> Result:
    """Return `result` with the largest relative difference and a fault for each pair beyond tolerance."""
    faults: list[str] = []
    largest = _largest(pair.score for pair in case.pairs)
    keys = {key for pair in case.pairs for key in pair.details}
    floors = {key: _largest(pair.details.get(key) for pair in case.pairs) for key in keys}
    worst = 0.0
    for i, (pair, outcome) in enumerate(zip(case.pairs, outcomes, strict=True)):
        what = f"pair {i} ({pair.image.name}, {pair.prompt[:30]!r})"
        if isinstance(outcome, ItemError):
            if pair.error is None or pair.error not in str(outcome):
                expected = f"score {pair.score}" if pair.error is None else f"error {pair.error!r}"
                faults.append(f"{what}: upstream {expected}, ours failed: {outcome}")
            continue
        if pair.score is None:
            faults.append(f"{what}: upstream {pair.error!r}, ours {outcome.value}")
            continue
        differences = {"score": _relative(outcome.value, pair.score, largest)}
        for key, theirs in pair.details.items():
            differences[key] = detail_difference(outcome.details.get(key), theirs, floors[key])
        worst = max(worst, *differences.values())
        for key, difference in differences.items():
            if not difference <= case.tolerance:
                ours = outcome.value if key == "score" else outcome.details.get(key)
                theirs = pair.score if key == "score" else pair.details[key]
                faults.append(f"{what}: {key} is {ours}, upstream's {theirs} ({difference:.1e})")
    return replace(result, difference=worst, faults=tuple(faults))


def _relative(ours: float, theirs: float, largest: float) -> float:
    gap = abs(ours - theirs)
    return gap / max(abs(theirs), _FLOOR * largest) if gap else 0.0


def detail_difference(ours: Any, theirs: Any, largest: float = 0.0) -> float:
    """Return the largest relative difference of the numbers in two details.

    It is infinite where anything else in them differs. Numbers far below `largest` count on its scale.
    """
    if _shape(ours) != _shape(theirs):
        return float("inf")
    pairs = zip(_numbers(ours), _numbers(theirs), strict=True)
    return max((_relative(a, b, largest) for a, b in pairs), default=0.0)


def _shape(value: Any) -> Any:
    """Return `value` with its numbers blanked."""
    if isinstance(value, Mapping):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shape(item) for item in value]
    return 0 if isinstance(value, int | float) and not isinstance(value, bool) else value


def _numbers(value: Any) -> list[float]:
    """Return the numbers in a detail, in the order of its keys."""
    if isinstance(value, Mapping):
        return [number for key in sorted(value) for number in _numbers(value[key])]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _largest(values: Iterable[Any]) -> float:
    return max((abs(number) for value in values for number in _numbers(value)), default=0.0)


def _dtype(model: RewardModel) -> str:
    return str(model.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Cost:
    """What loading a model and scoring a case once took in this process."""

    load_seconds: float
    seconds: float
    cpu_seconds: float
    peak_gib: float


def measure(folder: Path, threads: int) -> tuple[Result, Cost]:
    """Check a case once and say what it took. Meant for a process of its own: the peak is the process's.

    The time to score is that of the first pass, preparing images and prompts included.
    """
    import torch

    torch.set_num_threads(threads)
    case = read_case(folder)
    started = time.perf_counter()
    model = load_case(case)
    loaded, worked = time.perf_counter(), time.process_time()
    outcomes = score_case(model, case)
    seconds, cpu_seconds = time.perf_counter() - loaded, time.process_time() - worked
    blank = Result(case.name, case.reward, case.recipe, case.upstream, case.environment)
    result = replace(blank, pairs=len(case.pairs), tolerance=case.tolerance, dtype=_dtype(model))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return compare(case, outcomes, result), Cost(loaded - started, seconds, cpu_seconds, peak)
