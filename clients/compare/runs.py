"""RL runs as they stand on disk: the folders of our trainers, and CSV files of others."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
METRICS, CONFIG, PROVENANCE = "metrics.jsonl", "config.yaml", "provenance.json"
STEP, OWN = "step", "reward"
_ALGORITHMS = ("grpo", "dpo")
FACTS = ("run", "algorithm", "trained_on", "seed")
"""What a CSV says of a run besides its metrics, in columns or by options."""


@dataclass(frozen=True)
class Run:
    """A training: what was trained on, and what was measured on the way.

    `trained_on` are the rewards that counted, by weight, and `held_out` those that only judged; `metrics`
    have one value a step (S,), NaN where nothing was measured. Their names are our trainers': `reward`,
    `judge/NAME`, `eval/SPLIT/NAME`. `provenance` is what the scores rest on, by reward.
    """

    name: str
    algorithm: str
    trained_on: Mapping[str, float]
    held_out: tuple[str, ...]
    seed: int
    source: str
    steps: Floats
    metrics: Mapping[str, Floats]
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def reward(self) -> str:
        """What was trained on, as one name: `a + 0.5 b`."""
        return " + ".join(n if w == 1 else f"{w:g} {n}" for n, w in self.trained_on.items())

    def series(self, metric: str) -> tuple[Floats, Floats]:
        """Return the steps at which a metric was measured, and its values; empty where it never was."""
        values = self.metrics.get(metric, np.full(len(self.steps), np.nan))
        known = np.isfinite(values)
        return self.steps[known], values[known]


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Read all runs in and below `folders`, sorted by path. A run is a folder with a `metrics.jsonl`.

    Raises:
        ValueError: there is none, or one cannot be read.
    """
    folders = list(folders)
    found = sorted({path.parent for folder in folders for path in folder.rglob(METRICS)})
    if not found:
        shown = ", ".join(map(str, folders))
        raise ValueError(f"no run in {shown}: a run's folder holds {METRICS} and {CONFIG}")
    common = Path(*_common([folder.resolve().parts for folder in found]))
    return [read_run(folder, _name(folder.resolve(), common)) for folder in found]


def read_run(folder: Path, name: str = "") -> Run:
    """Read one run of our trainers.

    Raises:
        ValueError: a file is missing or is not what a trainer writes; it names the line.
    """
    import yaml

    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        rewards = config["rewards"]
        weights = {str(n): float(w) for n, w in rewards["weights"].items()}
        held_out = tuple(rewards.get("held_out") or ())
        seed = int(config.get("run", {}).get("seed", 0))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG} does not say what was trained on: {error!r}") from error
    rows = list(_json_lines(folder / METRICS))
    algorithm = next((key for key in _ALGORITHMS if key in config), "unknown")
    run = _run(rows, name or folder.name, algorithm, weights, held_out, seed, str(folder))
    return replace(run, provenance=_provenance(folder / PROVENANCE))


def read_csv(path: Path, columns: Mapping[str, str], facts: Mapping[str, str] | None = None) -> list[Run]:
    """Read runs of another trainer from a CSV with a row a step.

    `columns` maps our names to the file's: `step`, and metrics (`reward`, `judge/NAME`, `eval/SPLIT/NAME`);
    of what `FACTS` has, `run`, `algorithm`, `trained_on` and `seed`, each is a column or, the same for all
    rows, in `facts`. Rows of one `run` are one run; without that there is one run. Empty cells are no value.

    Raises:
        ValueError: a column is missing, or a cell that should be is no number; it names the row.
    """
    facts = dict(facts or {})
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        there = reader.fieldnames or []
        if missing := [column for column in columns.values() if column not in there]:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(there)}")
        rows = list(reader)
    if STEP not in columns or len(columns.keys() - set(FACTS)) < 2:
        raise ValueError(f"say which columns of {path} are the step and the metrics, as in step=global_step")
    runs: dict[str, list[dict[str, Any]]] = {}
    said: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, 2):
        told = facts | {fact: row[columns[fact]] for fact in FACTS if fact in columns}
        name = told.get("run", path.stem)
        said.setdefault(name, told)
        metrics = {ours: row[theirs] for ours, theirs in columns.items() if ours not in FACTS}
        try:
            runs.setdefault(name, []).append({n: float(v) for n, v in metrics.items() if v.strip()})
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return [
        _run(
            each,
            name,
            said[name].get("algorithm", "unknown").lower(),
            {said[name].get("trained_on", "unknown"): 1.0},
            (),
            int(said[name].get("seed") or 0),
            str(path),
        )
        for name, each in runs.items()
    ]


def _run(
    rows: Sequence[Mapping[str, Any]],
    name: str,
    algorithm: str,
    trained_on: Mapping[str, float],
    held_out: tuple[str, ...],
    seed: int,
    source: str,
) -> Run:
    by_step: dict[float, dict[str, float]] = {}
    for row in rows:
        if STEP not in row:
            raise ValueError(f"{source}: a row has no {STEP!r}, it has {', '.join(map(str, row))}")
        found = {k: float(v) for k, v in row.items() if k != STEP and isinstance(v, int | float)}
        # A step may have several rows: the later one adds to the former or replaces it.
        by_step.setdefault(float(row[STEP]), {}).update(found)
    steps = sorted(by_step)
    names = dict.fromkeys(key for step in steps for key in by_step[step])
    metrics = {n: np.array([by_step[step].get(n, math.nan) for step in steps]) for n in names}
    return Run(name, algorithm, trained_on, held_out, seed, source, np.array(steps), metrics)


def _provenance(path: Path) -> Mapping[str, Mapping[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return {name: dict(said) for name, said in found.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} does not say what scores rest on: {error!r}") from error


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines):  # a run that is still going on, or was killed in the middle of a line
                return
            raise ValueError(f"{path}, line {number}: {error}") from error
        yield row


def _common(paths: Sequence[tuple[str, ...]]) -> list[str]:
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def _name(folder: Path, common: Path) -> str:
    return str(folder.relative_to(common)) if folder != common else folder.name
