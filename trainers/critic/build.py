"""Making a critic's data: sample pictures, show them unfinished, have a judge label the finished ones.

Sources of the stages: PARM (arXiv 2501.13926), sec. 3. There a picture is clear enough to judge from its
eleventh of 18 steps and not before its tenth; a step has potential if the picture it becomes is right.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from rewardzoo.clients import Scorer
from rewardzoo.local import LocalRewards
from rewardzoo.trainers.critic.config import DataSection, JudgeSection
from rewardzoo.trainers.critic.records import Record, Stage, png, write_part
from rewardzoo.trainers.lab.exact_reward import ExactReward
from rewardzoo.trainers.policies.partial import decode_partial
from rewardzoo.trainers.policies.policy import ARImagePolicy
from rewardzoo.trainers.prompts import Prompt
from rewardzoo.trainers.rewards import connect
from rewardzoo.trainers.rollout import draw

MAKING = timedelta(days=7)
"""How long other processes wait for the one that makes data."""
_SETTINGS = "settings.json"
Floats = NDArray[np.floating[Any]]
Notes = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Judge:
    """Who labels: a scorer, which of its rewards, and from which score on the answer is yes."""

    scorer: Scorer
    reward: str
    threshold: float

    @classmethod
    def open(cls, config: JudgeSection) -> Self:
        """Connect to the judge, or load it."""
        name = config.reward
        scorer = (
            LocalRewards.of([ExactReward(name)])
            if name.startswith("lab:")
            else connect([name], config.url, timeout=config.timeout)
        )
        return cls(scorer, name, config.threshold)

    def label(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> tuple[Floats, Notes]:
        """Answer for each of n finished pictures, 1 or 0, NaN where it cannot be judged; and say why."""
        result = self.scorer.score_result(
            images,
            [prompt.text for prompt in prompts],
            reward=self.reward,
            metadata=[prompt.metadata for prompt in prompts],
        )
        labels = np.where(np.isnan(result.scores), np.nan, result.scores >= self.threshold)
        return labels, result.details


def build_split(
    folder: Path,
    policy: ARImagePolicy,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    data: DataSection,
    seed: int,
) -> None:
    """Write the parts of one split that are not there yet; a part is `data.prompts_per_part` prompts.

    What a part holds follows from the settings alone, so a build that was killed goes on to the same data.

    Raises:
        ValueError: the folder was begun with other settings.
        UnavailableError: the judge cannot be reached; parts that are written stay.
    """
    _check_settings(folder, prompts, judge, data, seed)
    size = data.prompts_per_part
    starts = range(0, len(prompts), size)
    for start in track(starts, description=folder.name):
        path = folder / f"part-{start // size:05d}.parquet"
        if not path.exists():
            some = prompts[start : start + size]
            write_part(path, list(_records(policy, some, start, judge, data, seed)))


def without(prompts: Sequence[Prompt], others: Sequence[Prompt]) -> list[Prompt]:
    """Leave out prompts that are among `others`, whatever their case and blanks, and repetitions."""
    seen = {_plain(prompt.text) for prompt in others}
    kept = []
    for prompt in prompts:
        if (plain := _plain(prompt.text)) not in seen:
            seen.add(plain)
            kept.append(prompt)
    return kept


def statistics(rows: Sequence[Mapping[str, object]]) -> dict[str, dict[str, float]]:
    """Count rows, and the share of yes, by stage and step."""
    yes: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for row in rows:
        name = f"{row['stage']} at {row['step']}/{row['steps']}"
        count[name] += 1
        yes[name] += float(row["label"]) >= 0.5  # type: ignore[arg-type]
    return {name: {"rows": n, "yes": yes[name] / n} for name, n in sorted(count.items())}


def _records(
    policy: ARImagePolicy,
    prompts: Sequence[Prompt],
    first: int,
    judge: Judge,
    data: DataSection,
    seed: int,
) -> Iterator[Record]:
    copies, total = data.images_per_prompt, policy.tokens_per_image
    places = [(first + i, copy) for i in range(len(prompts)) for copy in range(copies)]
    repeated = [prompt for prompt in prompts for _ in range(copies)]
    batch = policy.encode([prompt.text for prompt in prompts]).repeat_interleave(copies)
    uniforms = torch.from_numpy(draw((seed,), places, total))
    sampling = data.sampling.sampling()
    parts = [
        policy.sample(batch[rows], uniforms[rows], sampling).tokens
        for rows in _slices(len(places), data.sampling.batch_size)
    ]
    tokens = torch.cat(parts)
    finished = policy.decode(tokens)
    labels, notes = judge.label(finished, repeated)
    kept: list[int] = np.flatnonzero(~np.isnan(labels)).tolist()

    def record(pixels: NDArray[np.uint8], i: int, stage: Stage, label: float, step: int) -> Record:
        return Record(
            png(pixels),
            repeated[i].text,
            stage,
            label,
            step,
            total,
            "-".join(map(str, (seed, *places[i]))),
            str(notes[i].get("category", "")),
            str(notes[i].get("reason", "")),
        )

    for i in kept:
        yield record(finished[i], i, "selection", float(labels[i]), total)
        if data.reflections:
            yield record(finished[i], i, "reflection", float(labels[i]), total)
    shown = [i for i in kept if places[i][1] < (data.unfinished_per_prompt or copies)]
    for share in data.steps:
        count = max(1, round(share * total))
        clear = data.is_clear(share)
        if clear is None or not shown:
            continue
        unfinished = decode_partial(policy, tokens[torch.tensor(shown)], count)
        for pixels, i in zip(unfinished, shown, strict=True):
            yield record(pixels, i, "clarity", float(clear), count)
            if clear:
                yield record(pixels, i, "potential", float(labels[i]), count)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _check_settings(
    folder: Path, prompts: Sequence[Prompt], judge: Judge, data: DataSection, seed: int
) -> None:
    """Hold a folder to the settings that it was begun with."""
    texts = hashlib.sha256("\n".join(prompt.text for prompt in prompts).encode()).hexdigest()
    made = data.model_dump(mode="json", exclude={"folder", "train", "held_out"})
    now = {**made, "prompts": len(prompts), "prompts_sha256": texts, "seed": seed}
    path = folder / _SETTINGS
    if path.exists():
        before = json.loads(path.read_text())
        if changed := sorted(name for name in {*before, *now} if before.get(name) != now.get(name)):
            raise ValueError(
                f"{folder} was begun with other settings ({', '.join(changed)}): use another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(now, indent=1) + "\n")
