"""The trainer's side of rewards: submit and go on, wait for a server that restarts, agree on what came back.

Every process scores its own images. Scores are then gathered and mixed once over the global batch, by all
processes alike, so that normalisers which look at groups or at all that was ever seen learn the same
whatever the number of processes. An item that could not be scored is NaN from there on, never 0.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray

from rewardzoo.clients import RewardClient, Scorer, ScoreResult
from rewardzoo.clients.in_process import Model
from rewardzoo.errors import RewardZooError, UnavailableError
from rewardzoo.local import LocalRewards
from rewardzoo.trainers.config import RewardsSection
from rewardzoo.trainers.lab.exact_reward import ExactReward
from rewardzoo.trainers.prompts import Prompt

logger = logging.getLogger(__name__)
_LAB = "lab:"
_GLANCE = 0.2
# How much longer than the scorer's own deadline is waited: its error says more.
_GRACE = 5.0
_TEMPORARY_FAILURE = 75


class RewardsLostError(RewardZooError):
    """A step got no rewards; all processes raise it together, and what was reached before can be saved.

    `exit_code` is 75, `EX_TEMPFAIL` of sysexits.h, where starting again later is all it takes: the server is
    gone. It is 1 where that cannot help, as when the server refuses.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopAskedError(RewardZooError):
    """A signal asked to stop while rewards were awaited; all processes raise it together."""


@dataclass(frozen=True)
class Pending:
    """Images that are being scored: one future a scorer, of n items; `waited` seconds for them already."""

    count: int
    futures: Sequence[Future[ScoreResult]]
    waited: float = 0.0

    def done(self) -> bool:
        """Whether nothing of it is awaited any more."""
        return all(future.done() for future in self.futures)


@dataclass(frozen=True)
class Scores:
    """Raw scores of the global batch: process after process, in the order in which each submitted.

    `parts` has those (n,) float32 of each reward and judge by name, NaN where `errors` says why; `groups` is
    each item's group; `mine` is where this process's items are, and `waited` how many seconds it waited.
    """

    parts: Mapping[str, NDArray[np.float32]]
    groups: Sequence[int]
    mine: slice
    waited: float
    errors: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Share:
    """What one process has to tell the others."""

    parts: Mapping[str, NDArray[np.float32]]
    groups: Sequence[int]
    errors: Mapping[int, str]
    provenance: Mapping[str, Any]
    failure: str = ""
    exit_code: int = 1
    stop: bool = False


def connect(
    names: Sequence[str],
    url: str | list[str],
    *,
    device: str = "auto",
    timeout: float,
    max_in_flight: int = 4,
) -> Scorer:
    """Load rewards here where `url` is `local`, else connect to those that serve them.

    The token is `REWARDZOO_TOKEN` of the environment.
    """
    if url == "local":
        return LocalRewards(names, device=device)
    token = os.environ.get("REWARDZOO_TOKEN")
    return RewardClient(url, token=token, timeout=timeout, max_in_flight=max_in_flight)


class Rewards:
    """What images are scored by: served rewards, models in this process and the lab's judge as one.

    The token is `REWARDZOO_TOKEN` of the environment. `stop` is asked while scores are awaited; `own` is a
    reward that is not connected to, for `host` brings it. Close it in the end.
    """

    def __init__(
        self, config: RewardsSection, *, stop: Callable[[], bool] = lambda: False, own: str | None = None
    ) -> None:
        self.mixture = config.mixture()
        self.provenance: dict[str, Any] = {}
        self._config = config
        self._stop = stop
        self._overlap = config.overlap
        self._scorers: list[tuple[Scorer, tuple[str, ...]]] = []
        self._own: tuple[Scorer, tuple[str, ...]] | None = None
        self._judges: tuple[str, ...] = ()
        if judged := tuple(name for name in self.names if name.startswith(_LAB)):
            self._scorers.append((LocalRewards.of(map(ExactReward, judged)), judged))
        if others := tuple(name for name in self.names if not name.startswith(_LAB) and name != own):
            self._scorers.append((self._connect(others), others))

    @property
    def names(self) -> tuple[str, ...]:
        """All that is scored: what counts, then what is held out."""
        return (*self.mixture.rewards, *self._judges)

    @property
    def held_out(self) -> tuple[str, ...]:
        """What is scored and never counts."""
        return (*self.mixture.held_out, *self._judges)

    def host(self, models: Mapping[str, Model]) -> None:
        """Score by these models in this process, in place of those of the last call.

        Those whose names the mixture does not have are judges. Nothing may be in flight.
        """
        if self._own is not None:
            self._scorers.remove(self._own)
            self._own[0].close()
        self._own = (LocalRewards.of(models), tuple(models))
        self._scorers.append(self._own)
        self._judges = tuple(name for name in models if name not in self.mixture.rewards)
        for name in models:  # they rest on something else now, and are meant to
            self.provenance.pop(name, None)

    def check(self) -> None:
        """Wait until the server is ready, and see that it hosts what is asked of it; all processes together.

        Raises:
            RewardsLostError: it was not ready within the timeout, or does not host a reward.
        """
        _raise_together(cast(list[_Share], gather_object([self._checked()])))

    def submit(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> Pending:
        """Begin to score images (n, H, W, 3) of n prompts; they must not be changed until it is done."""
        texts = [prompt.text for prompt in prompts]
        notes = [prompt.metadata for prompt in prompts]
        metadata = notes if any(notes) else None
        futures = [
            scorer.submit_result(images, texts, reward=names, metadata=metadata)
            for scorer, names in self._scorers
        ]
        began = time.monotonic()
        if not self._overlap:
            wait(futures, self._patience)
        return Pending(len(texts), futures, time.monotonic() - began)

    def collect(self, pending: Sequence[Pending], groups: Sequence[int]) -> Scores:
        """Wait for what was submitted, and gather the scores of all processes' items.

        `groups` names the group of each of this process's items, by a name that no other process uses. Every
        process must call it at the same time, with nothing in its hands too.

        Raises:
            RewardsLostError: no scores could be had, by this process or another.
            StopAskedError: `stop` said so, here or there.
        """
        began = time.monotonic()
        share = self._await(pending, groups)
        waited = time.monotonic() - began + sum(each.waited for each in pending)
        shares = cast(list[_Share], gather_object([share]))
        _raise_together(shares)
        for each in shares:
            self._note_provenance(each.provenance)
        parts = {n: np.concatenate([s.parts[n] for s in shares]) for n in self.names}
        merged = list(chain.from_iterable(each.groups for each in shares))
        starts = np.cumsum([0, *(len(each.groups) for each in shares)]).tolist()
        errors = {starts[k] + i: text for k, each in enumerate(shares) for i, text in each.errors.items()}
        if errors:
            first = next(iter(errors.values()))
            logger.warning("%d of %d images could not be scored in full: %s", len(errors), len(merged), first)
        at = PartialState().process_index
        return Scores(parts, merged, slice(starts[at], starts[at + 1]), waited, errors)

    def mix(self, scores: Scores) -> NDArray[np.float32]:
        """Return the totals (n,) of the global batch, NaN where a reward that counts failed.

        Running normalisers learn from it: call it once for what is trained on, and never for an evaluation.

        Raises:
            RewardsLostError: not one item has a total.
        """
        totals = self.mixture.total(scores.parts, scores.groups)
        if len(totals) and not np.isfinite(totals).any():
            why = next(iter(scores.errors.values()), "without a reason")
            raise RewardsLostError(f"not one of {len(totals)} images could be scored: {why}", 1)
        return totals

    def state_dict(self) -> dict[str, Any]:
        """Return what the mixture's normalisers have learnt."""
        return self.mixture.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.mixture.load_state_dict(state)

    def close(self) -> None:
        """Free connections and models."""
        for scorer, _ in self._scorers:
            scorer.close()

    @property
    def _patience(self) -> float:
        return self._config.timeout + _GRACE

    def _connect(self, names: tuple[str, ...]) -> Scorer:
        config = self._config
        return connect(
            names,
            config.url,
            device=config.device,
            timeout=config.timeout,
            max_in_flight=config.max_in_flight,
        )

    def _checked(self) -> _Share:
        for scorer, names in self._scorers:
            if not isinstance(scorer, RewardClient):
                continue
            try:
                scorer.wait_ready(self._config.timeout)
                served = [each.name for each in scorer.rewards()]
            except UnavailableError as error:
                return self._none(str(error), _TEMPORARY_FAILURE)
            except RewardZooError as error:
                return self._none(str(error))
            hosted = {*served, *(name.partition(":")[0] for name in served)}
            if missing := [name for name in names if name not in hosted]:
                where, there = ", ".join(scorer.urls), ", ".join(served)
                return self._none(f"{where} does not serve {', '.join(missing)}; it serves {there}")
        return self._none()

    def _await(self, pending: Sequence[Pending], groups: Sequence[int]) -> _Share:
        """Return this process's scores, or why there are none; it raises nothing the others do not see."""
        count = sum(each.count for each in pending)
        if len(groups) != count:
            raise ValueError(f"one group an item, got {count} items and {len(groups)} groups")
        futures = [future for each in pending for future in each.futures]
        deadline = time.monotonic() + self._patience
        try:
            # A forward in this process cannot be left: Python would end below it, and abort.
            patient = self._config.url == "local" or self._own is not None
            while wait(futures, _GLANCE).not_done:
                if self._stop() and not patient:
                    return self._none(stop=True)
                if time.monotonic() > deadline and not patient:
                    return self._none(f"no scores within {self._config.timeout:g} s", _TEMPORARY_FAILURE)
            return self._scored(pending, groups)
        except UnavailableError as error:
            return self._none(str(error), _TEMPORARY_FAILURE)
        except (RewardZooError, ValueError) as error:
            return self._none(str(error))
        finally:
            for future in futures:
                future.cancel()

    def _scored(self, pending: Sequence[Pending], groups: Sequence[int]) -> _Share:
        results = [_merged([future.result() for future in each.futures], self._rows) for each in pending]
        parts = {n: np.concatenate([_EMPTY, *(r[n].scores for r in results)]) for n in self.names}
        errors: dict[int, str] = {}
        start = 0
        for each, result in zip(pending, results, strict=True):
            for name, part in result.items():
                for i, error in part.errors.items():
                    errors.setdefault(start + i, f"{name}: {error}")
            start += each.count
        provenance = {name: part.provenance for result in results[:1] for name, part in result.items()}
        return _Share(parts, list(groups), errors, provenance)

    @property
    def _rows(self) -> list[tuple[str, ...]]:
        return [names for _, names in self._scorers]

    def _none(self, failure: str = "", exit_code: int = 1, *, stop: bool = False) -> _Share:
        return _Share(dict.fromkeys(self.names, _EMPTY), [], {}, {}, failure, exit_code, stop)

    def _note_provenance(self, found: Mapping[str, Any]) -> None:
        for name, now in found.items():
            before = self.provenance.setdefault(name, now)
            if before != now:
                logger.warning("%s rests on something else now: %s, it was %s", name, now, before)
                self.provenance[name] = now


_EMPTY = np.empty(0, dtype=np.float32)


def _merged(results: Sequence[ScoreResult], rows: Sequence[tuple[str, ...]]) -> dict[str, ScoreResult]:
    return {name: result.parts[name] for result, names in zip(results, rows, strict=True) for name in names}


def _raise_together(shares: Sequence[_Share]) -> None:
    if any(share.stop for share in shares):
        raise StopAskedError("asked to stop while rewards were awaited")
    if failed := [share for share in shares if share.failure]:
        among = f" (in {len(failed)} of {len(shares)} processes)" if len(shares) > 1 else ""
        raise RewardsLostError(f"no rewards{among}: {failed[0].failure}", failed[0].exit_code)
