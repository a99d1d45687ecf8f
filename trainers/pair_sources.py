"""Where the pairs of a DPO step come from: a file, rounds of candidates, or candidates of the step."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from rewardzoo.trainers.candidates import Candidates, sample, sample_in_shards
from rewardzoo.trainers.config import Section
from rewardzoo.trainers.grids import Sample
from rewardzoo.trainers.pair_logprobs import read_tokens, with_reference
from rewardzoo.trainers.pairs import PairMode, Pairs, make_pairs
from rewardzoo.trainers.preferences import Preferences, read_pairs
from rewardzoo.trainers.run import Run
from rewardzoo.trainers.sharding import weights_digest

logger = logging.getLogger(__name__)

ITERATIVE, ONLINE = "iterative", "online"

# What chance is drawn for, beside the seed; 0 and 1 are GRPO's steps and evaluations.
_ROUND, _ONLINE, _PAIRS, _ORDER = 2, 3, 4, 5
_DRAWN = 8


class PairsSection(Section):
    """Where pairs come from, and how many a step takes.

    `source` is

    - `iterative`: `rounds` times, the policy as it has become paints `candidates` images for each of
      `prompts_per_round` prompts; they are scored and paired, and the policy becomes the new reference;
    - `online`: the same each step, `prompts_per_round` being those of a step, with the policy as it began
      for reference;
    - a file or a glob of JSON lines or Parquet: see `rewardzoo.trainers.preferences.read_pairs`.

    A round is run.steps / rounds steps of `batch_size` pairs (of all processes together), in an order that is
    shuffled anew each time all were taken; `epoch` in the log says how often that was. An online step takes
    all the pairs that it made. `mode`, `per_prompt`, `threshold`, `min_gap` and `min_std` are those of
    `rewardzoo.trainers.pairs.make_pairs`. `condition_dropout` is the share of pairs that are learnt without
    their prompt, both sides alike. `shard` prompts at a time are sampled, scored and written to the disk,
    where a run that is killed finds them again.
    """

    source: str = ITERATIVE
    rounds: int = Field(default=2, ge=1)
    prompts_per_round: int = Field(default=512, ge=1)
    candidates: int = Field(default=8, ge=2)
    batch_size: int = Field(default=32, ge=1)
    mode: PairMode = "best_worst"
    per_prompt: int = Field(default=1, ge=1)
    threshold: float = 0.5
    min_gap: float = Field(default=0.0, ge=0)
    min_std: float = Field(default=0.0, ge=0)
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    shard: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _can_pair(self) -> Self:
        self.pair(np.zeros((0, self.candidates)), np.random.default_rng())
        return self

    def pair(self, totals: ArrayLike, rng: np.random.Generator) -> Pairs:
        """Pair candidates by their scores (P, K), as the settings say."""
        return make_pairs(
            totals,
            self.mode,
            rng=rng,
            per_prompt=self.per_prompt,
            threshold=self.threshold,
            min_gap=self.min_gap,
            min_std=self.min_std,
        )


class PairSource(Protocol):
    """Gives each step its pairs."""

    def take(self) -> tuple[Preferences, dict[str, float]]:
        """Return the pairs of this step, the same in every process, and what is to be logged."""


Made = tuple[str, Preferences, dict[str, float]]
"""Pairs of a round, with the name of the folder they are kept in and what is to be logged of them."""


def open_source(run: Run[Any], settings: PairsSection) -> PairSource:
    """Open the source that the settings name; before `Run.steps`, which may load a checkpoint."""
    if settings.source == ONLINE:
        return _Online(run, settings)
    if settings.source == ITERATIVE:
        return _Rounds(run, settings, settings.rounds, _sample_round)
    return _Rounds(run, settings, 1, _read_file)


class _Online:
    """Pairs of the policy as it is at each step, against the policy as it began."""

    def __init__(self, run: Run[Any], settings: PairsSection) -> None:
        self._run, self._settings = run, settings
        self._reference = run.reference()

    def take(self) -> tuple[Preferences, dict[str, float]]:
        run, settings = self._run, self._settings
        prompts = run.take(settings.prompts_per_round)
        found = sample(run, prompts, settings.candidates, (_ONLINE, run.step))
        pairs, said = _pair(run, settings, found, run.step)
        if run.grid_due():
            _draw(run, pairs)
        return with_reference(run, self._reference, pairs), said


class _Rounds:
    """Pairs that are made once a round, and kept beside the checkpoints with their reference.

    The reference is the policy as the round begins, so that its log-probabilities of the pairs, taken then,
    are all that is needed of it.
    """

    def __init__(
        self,
        run: Run[Any],
        settings: PairsSection,
        rounds: int,
        make: Callable[[Run[Any], PairsSection, int], Made],
    ) -> None:
        self._run, self._settings, self._make = run, settings, make
        self._length = run.config.run.steps // rounds
        self._number, self._folder = -1, ""
        self._pairs: Preferences
        run.keep(self)

    def take(self) -> tuple[Preferences, dict[str, float]]:
        number, done = divmod(self._run.step, self._length)
        said: dict[str, float] = {}
        if number != self._number:
            said = self._begin(number) if done == 0 else self._go_on(number)
        if not len(self._pairs):
            return self._pairs, said
        size = self._settings.batch_size
        rows = self._rows(done * size, (done + 1) * size)
        return self._pairs[rows], {**said, "epoch": (done + 1) * size / len(self._pairs)}

    def state_dict(self) -> dict[str, Any]:
        return {"folder": self._folder}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._folder = state["folder"]

    @property
    def _file(self) -> Path:
        out: Path = self._run.config.run.out
        return out / "rounds" / self._folder / "pairs.parquet"

    def _begin(self, number: int) -> dict[str, float]:
        run, began = self._run, time.monotonic()
        run.checkpoint()  # what follows takes long: whoever stops it comes back to here
        self._folder, made, said = self._make(run, self._settings, number)
        self._number, self._pairs = number, with_reference(run, run.model, made)
        if run.accelerator.is_main_process:
            self._pairs.save(self._file)
        run.accelerator.wait_for_everyone()
        if not len(made):
            skipped = {name: count for name, count in said.items() if name.startswith("skipped/")}
            if number == 0:
                raise ValueError(
                    f"pairs: no prompt gave a pair, so there is nothing to learn from: {skipped}"
                )
            logger.warning("round %d has no pairs, so it changes nothing: %s", number, skipped)
        _draw(run, made)
        return {**said, "round": float(number), "seconds/round": time.monotonic() - began}

    def _go_on(self, number: int) -> dict[str, float]:
        if not self._file.is_file():
            raise ValueError(f"{self._file} is gone, of which this round is not done: begin another run.out")
        self._number, self._pairs = number, Preferences.load(self._file)
        return {}

    def _rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the pairs at places start to stop of an order that is shuffled anew each epoch."""
        count, key = len(self._pairs), (self._run.config.run.seed, _ORDER, self._number)
        first, last = start // count, (stop - 1) // count
        epochs = [np.random.default_rng([*key, e]).permutation(count) for e in range(first, last + 1)]
        return np.concatenate(epochs)[start - first * count :][: stop - start]


def _sample_round(run: Run[Any], settings: PairsSection, number: int) -> Made:
    """Sample, score and pair candidates; those on the disk are taken where they are of these weights."""
    prompts = run.take(settings.prompts_per_round)
    sampling = run.config.sampling.model_dump(exclude={"batch_size"})
    same = [run.config.run.seed, settings.candidates, settings.shard, sampling, run.rewards.names]
    digest = weights_digest(run.trained, *same, [(prompt.text, prompt.metadata) for prompt in prompts])
    name = f"round-{number:03d}-{digest}"
    rounds = run.config.run.out / "rounds"
    if run.accelerator.is_main_process:
        for other in rounds.glob(f"round-{number:03d}-*"):
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)
    found = sample_in_shards(
        run, prompts, settings.candidates, (_ROUND, number), rounds / name, settings.shard
    )
    return name, *_pair(run, settings, found, number)


def _read_file(run: Run[Any], settings: PairsSection, number: int) -> Made:
    """Read the pairs of a file."""
    pairs = read_pairs(settings.source, run.policy.tokens_per_image, run.policy.encode_images)
    rng = np.random.default_rng([run.config.run.seed, _PAIRS, number])
    return "file", pairs.drop_conditions(settings.condition_dropout, rng), {"pairs": float(len(pairs))}


def _pair(
    run: Run[Any], settings: PairsSection, found: Candidates, number: int
) -> tuple[Preferences, dict[str, float]]:
    """Pair candidates by their scores, and say how that went."""
    totals = found.totals(run)  # (P, K)
    rng = np.random.default_rng([run.config.run.seed, _PAIRS, number])
    made = settings.pair(totals, rng)
    first = made.prompt * settings.candidates
    pairs = Preferences.of(
        [found.prompts[prompt] for prompt in made.prompt],
        found.tokens[first + made.chosen],
        found.tokens[first + made.rejected],
        made.gap.astype(np.float32),
    )
    said = {**found.metrics(run, totals), "pairs": float(len(made))}
    if len(made):
        said["gap"] = float(made.gap.mean())
    said |= {f"skipped/{reason}": float(count) for reason, count in made.skipped.items()}
    return pairs.drop_conditions(settings.condition_dropout, rng), said


def _draw(run: Run[Any], pairs: Preferences) -> None:
    """Draw the first pairs: chosen, and right of it rejected."""
    some = pairs[np.arange(min(_DRAWN, len(pairs)))]
    if not len(some):
        return
    pixels = run.policy.decode(read_tokens(run, some).flatten(0, 1))
    samples = [
        Sample(pixels[2 * i + side], prompt, [name, f"gap {some.gap[i]:.3g}"])
        for i, prompt in enumerate(some.prompts)
        for side, name in enumerate(("chosen", "rejected"))
    ]
    run.tracking.grid(run.step, "pairs", samples)
