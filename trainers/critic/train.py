"""From a generator and a judge to a critic that can be served: make data, teach, measure, write it down."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import PartialState

from rewardzoo.rewards._hashes import sha256
from rewardzoo.trainers.critic.build import MAKING, Judge, build_split, statistics, without
from rewardzoo.trainers.critic.card import write_card
from rewardzoo.trainers.critic.config import CriticConfig
from rewardzoo.trainers.critic.fit import Fit
from rewardzoo.trainers.critic.quality import (
    Floats,
    Labels,
    Quality,
    at_temperature,
    by_category,
    fit_temperature,
    measure,
)
from rewardzoo.trainers.critic.records import contact_sheet, read
from rewardzoo.trainers.critic.tasks import MODEL, Note, Rows, make_task
from rewardzoo.trainers.policies.loading import load_policy
from rewardzoo.trainers.prompts import load_prompts

logger = logging.getLogger(__name__)
_TRAIN = "train"
_ALL = "all"


@dataclass(frozen=True)
class Measured:
    """P(yes) of a split's rows at the temperatures that were fitted, what is known of the rows, and how good
    it is by question and category."""

    p: Floats
    notes: Sequence[Note]
    quality: Mapping[str, Quality]

    @property
    def labels(self) -> Labels:
        """What would have been right."""
        return _labels(self.notes)


def train(config: CriticConfig) -> Path:
    """Train a critic, and return the folder that `rewardzoo serve` takes: `orm:FOLDER`.

    Raises:
        ValueError: settings that fit neither each other nor the files.
        UnavailableError: the judge is gone; the data made so far stay.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if config.data.policy is not None:
        state = PartialState(timeout=MAKING)
        with state.main_process_first():
            if state.is_main_process:
                make_data(config)
    task = make_task(config.model)
    data = task.rows(read(config.data.folder, _TRAIN), seed=config.run.seed)
    learned, validated = split_by_prompt(data, config.run.validation_share)
    fit = Fit(config, task, learned, validated)
    said = fit.run()
    asked = {"validation": _asked(fit, validated)}
    for name in config.data.held_out:
        asked[name] = _asked(fit, fit.task.rows(read(config.data.folder, name), seed=None))
    temperatures = _temperatures(*asked["validation"])
    splits = {name: _measured(*each, temperatures) for name, each in asked.items()}
    if fit.accelerator.is_main_process:
        out = config.run.out
        fit.task.save(out, temperatures, config.model.weights_license)
        (out / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        found = {
            "weights_sha256": sha256(out / MODEL),
            "rows": len(learned),
            "fit": said,
            "temperatures": dict(temperatures),
            "quality": {
                name: {group: quality.row() for group, quality in split.quality.items()}
                for name, split in splits.items()
            },
        }
        (out / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")
        _write_predictions(out / "predictions.jsonl", splits)
        write_card(config, fit.task.reward.spec, found, {n: (s.p, s.labels) for n, s in splits.items()})
    fit.accelerator.wait_for_everyone()
    return config.run.out


def make_data(config: CriticConfig) -> None:
    """Make the splits that are not there yet, and write beside them what they hold."""
    data = config.data
    if data.policy is None or data.judge is None or data.train is None:
        raise ValueError("data.policy, data.judge and data.train say how data are made: one is missing")
    policy = load_policy(data.policy).to(PartialState().device)
    judge = Judge.open(data.judge)
    held = {name: load_prompts(section) for name, section in data.held_out.items() if section}
    asked = load_prompts(data.train)
    kept = without(asked, [prompt for prompts in held.values() for prompt in prompts])
    if len(kept) < len(asked):
        logger.info("%d prompts are left out: repetitions, or among those held out", len(asked) - len(kept))
    for i, (name, prompts) in enumerate({_TRAIN: kept, **held}.items()):
        folder = data.folder / name
        build_split(folder, policy, prompts, judge, data=data, seed=data.seed + i)
        rows = read(data.folder, name)
        counted = statistics(rows.select_columns(["stage", "step", "steps", "label"]))
        (folder / "statistics.json").write_text(json.dumps(counted, indent=1) + "\n")
        contact_sheet(rows, folder / "contact_sheet.png")
    judge.scorer.close()


def split_by_prompt(rows: Rows, share: float) -> tuple[Rows, Rows]:
    """Hold back the rows of about that share of the prompts: (the rest, those).

    Which prompts follows from their text alone, so that no prompt is ever on both sides.
    """
    held = [zlib.crc32(note.prompt.encode()) / 2**32 < share for note in rows.notes]
    rest, validation = (rows.select([i for i, h in enumerate(held) if h == side]) for side in (False, True))
    if not (rest and validation):
        raise ValueError(
            f"run.validation_share {share} of these prompts leaves {len(rest)} rows to learn from and "
            f"{len(validation)} to validate on: both are needed"
        )
    return rest, validation


def _asked(fit: Fit, rows: Rows) -> tuple[Floats, Sequence[Note]]:
    """Log-odds and notes of the rows whose label is not a tie."""
    kept = rows.select([i for i, note in enumerate(rows.notes) if note.label != 0.5])
    return np.array(fit.predict(kept)[0]), kept.notes


def _temperatures(log_odds: Floats, notes: Sequence[Note]) -> dict[str, float]:
    """Fit a temperature to each question."""
    labels, groups = _labels(notes), _groups(notes)
    return {
        str(group): fit_temperature(log_odds[groups == group], labels[groups == group])
        for group in np.unique(groups)
        if group in ("selection", "clarity", "potential")
    }


def _measured(log_odds: Floats, notes: Sequence[Note], temperatures: Mapping[str, float]) -> Measured:
    labels, groups = _labels(notes), _groups(notes)
    categories = np.array([note.category for note in notes])
    p = at_temperature(log_odds, np.array([temperatures.get(note.group, 1.0) for note in notes]))
    quality = {_ALL: measure(p, labels)}
    for group in np.unique(groups):
        at = groups == group
        quality[str(group)] = measure(p[at], labels[at])
        named = by_category(p[at], labels[at], categories[at].tolist())
        quality |= {f"{group}: {name}": each for name, each in named.items() if name}
    return Measured(p, notes, quality)


def _labels(notes: Sequence[Note]) -> Labels:
    return np.array([note.label > 0.5 for note in notes])


def _groups(notes: Sequence[Note]) -> Any:
    return np.array([note.group for note in notes])


def _write_predictions(path: Path, splits: Mapping[str, Measured]) -> None:
    """Write a JSON line a row: what was said of it in this process, and what is known of it."""
    with path.open("w", encoding="utf-8") as file:
        for name, split in splits.items():
            for p, note in zip(split.p.tolist(), split.notes, strict=True):
                file.write(json.dumps({"split": name, "p_yes": p, **asdict(note)}) + "\n")
