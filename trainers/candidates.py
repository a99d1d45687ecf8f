"""Candidates: K images for each of P prompts, sampled, scored, and kept on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray

from rewardzoo.trainers.evaluation import mean, score_metrics
from rewardzoo.trainers.preferences import read_parquet, token_matrix, write_parquet
from rewardzoo.trainers.prompts import Prompt
from rewardzoo.trainers.rewards import Scores
from rewardzoo.trainers.rollout import Images, rollout
from rewardzoo.trainers.run import Run

_SCORE = "score/"


@dataclass(frozen=True, eq=False)
class Candidates:
    """K images for each of P prompts, the same in every process.

    `prompts` are P; `tokens` int32 (P * K, N), the K of a prompt in a row; `parts` float32 (P * K,) by reward
    and judge, NaN where it failed; `errors` says why, by image.
    """

    prompts: Sequence[str]
    tokens: NDArray[np.int32]
    parts: Mapping[str, NDArray[np.float32]]
    errors: Mapping[int, str]

    @property
    def per_prompt(self) -> int:
        """K."""
        return len(self.tokens) // len(self.prompts)

    def totals(self, run: Run[Any]) -> NDArray[np.float32]:
        """Mix the scores to totals (P, K); running normalisers learn from it."""
        groups = np.arange(len(self.prompts)).repeat(self.per_prompt).tolist()
        scores = Scores(self.parts, groups, slice(None), 0.0, self.errors)
        return run.rewards.mix(scores).reshape(len(self.prompts), -1)

    def metrics(self, run: Run[Any], totals: NDArray[np.float32]) -> dict[str, float]:
        """Return the mean of the totals and of each reward and judge, and the share that failed."""
        found = {"reward": mean(totals), "failed": float(np.isnan(totals).mean())}
        return {**found, **score_metrics(run, self.parts)}

    @classmethod
    def join(cls, shards: Sequence[Candidates]) -> Candidates:
        """Put shards one after another."""
        errors: dict[int, str] = {}
        start = 0
        for shard in shards:
            errors |= {start + i: text for i, text in shard.errors.items()}
            start += len(shard.tokens)
        return cls(
            [prompt for shard in shards for prompt in shard.prompts],
            np.concatenate([shard.tokens for shard in shards]),
            {name: np.concatenate([shard.parts[name] for shard in shards]) for name in shards[0].parts},
            errors,
        )

    def save(self, path: Path) -> None:
        """Write to a Parquet file, a row an image: `prompt`, `tokens`, `score/NAME` each, and `error`."""
        write_parquet(
            path,
            {
                "prompt": [prompt for prompt in self.prompts for _ in range(self.per_prompt)],
                "tokens": list(self.tokens),
                **{f"{_SCORE}{name}": values for name, values in self.parts.items()},
                "error": [self.errors.get(i) for i in range(len(self.tokens))],
            },
        )

    @classmethod
    def load(cls, path: Path, per_prompt: int) -> Candidates:
        """Read what `save` wrote."""
        table = read_parquet(path)
        scores = [name for name in table.column_names if name.startswith(_SCORE)]
        return cls(
            table["prompt"].to_pylist()[::per_prompt],
            token_matrix(table["tokens"]),
            {name.removeprefix(_SCORE): table[name].to_numpy() for name in scores},
            {i: text for i, text in enumerate(table["error"].to_pylist()) if text is not None},
        )


def sample(run: Run[Any], prompts: Sequence[Prompt], per_prompt: int, key: tuple[int, ...]) -> Candidates:
    """Sample and score candidates, each process its share; chance follows from the seed and `key`."""
    return _finish(run, prompts, rollout(run, prompts, per_prompt, key, score=True))


def sample_in_shards(
    run: Run[Any], prompts: Sequence[Prompt], per_prompt: int, key: tuple[int, ...], folder: Path, size: int
) -> Candidates:
    """Sample and score candidates `size` prompts at a time, and keep each such shard in a file of `folder`.

    A shard that is there is read instead. While one is scored the next is sampled.
    """
    files = [folder / f"candidates-{start:06d}.parquet" for start in range(0, len(prompts), size)]
    # What the main process sees is what counts, should files appear meanwhile.
    there: list[bool] = gather_object([[file.exists() for file in files]])[0]
    for at, images in _in_flight(run, prompts, per_prompt, key, size, there):
        shard = _finish(run, prompts[at * size : (at + 1) * size], images)
        if run.accelerator.is_main_process:
            shard.save(files[at])
        run.stop_if_asked()
    run.accelerator.wait_for_everyone()
    return Candidates.join([Candidates.load(file, per_prompt) for file in files])


def _in_flight(
    run: Run[Any],
    prompts: Sequence[Prompt],
    per_prompt: int,
    key: tuple[int, ...],
    size: int,
    there: Sequence[bool],
) -> Iterator[tuple[int, Images]]:
    """Yield shards once the next one is sampled, too."""
    waiting: tuple[int, Images] | None = None
    for at, done in enumerate(there):
        if done:
            continue
        begun = at, rollout(run, prompts[at * size : (at + 1) * size], per_prompt, (*key, at), score=True)
        if waiting:
            yield waiting
        waiting = begun
    if waiting:
        yield waiting


def _finish(run: Run[Any], prompts: Sequence[Prompt], images: Images) -> Candidates:
    """Wait for the scores of images, and give every process those of all."""
    scores = run.rewards.collect(images.pending, images.groups)
    tokens = gather_object([images.tokens.to("cpu", torch.int32).numpy()])
    return Candidates([p.text for p in prompts], np.concatenate(tokens), scores.parts, scores.errors)
