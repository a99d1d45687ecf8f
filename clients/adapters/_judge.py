"""What the adapters share: a scorer, what it is to score by, and what becomes of what it cannot score."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from rewardzoo.clients.adapters._columns import image_of, is_batch, prompt_of
from rewardzoo.clients.client import AsyncRewardClient, RewardClient
from rewardzoo.clients.mixing import Mixture
from rewardzoo.clients.result import ScoreResult
from rewardzoo.clients.scorer import Metadata, OnError, Reward, Scorer
from rewardzoo.errors import DeadlineError, ItemsFailedError

Source = Scorer | AsyncRewardClient | str | Sequence[str]
"""What scores: a client, `LocalRewards`, or the URL (or URLs of replicas) of a server."""
_TOKEN = "REWARDZOO_TOKEN"


@dataclass(frozen=True)
class Scores:
    """One total an item, and the raw scores of each reward by its name where there are several.

    What could not be scored is NaN, or None in `totals` where the adapter's `on_error` is "none".
    """

    totals: list[float | None]
    parts: dict[str, list[float]]

    def first(self) -> dict[str, float | None]:
        """Return the total of a lone item as `score`, with its parts beside it."""
        return {"score": self.totals[0], **{name: values[0] for name, values in self.parts.items()}}


class Judge:
    """A scorer with what to score by. Thread-safe; forked and pickled as its scorer is.

    `reward` is one name, weights by name, or a `Mixture`; None is the scorer's own. `options` are those of
    `RewardClient`, where `source` is a URL. The token is `REWARDZOO_TOKEN` of the environment where none is
    given, so that it need not stand in a configuration that is logged.
    """

    def __init__(
        self, source: Source, reward: Reward | None = None, *, on_error: OnError = "raise", **options: Any
    ) -> None:
        if on_error not in ("raise", "nan", "none"):
            raise ValueError(f"on_error must be 'raise', 'nan' or 'none', got {on_error!r}")
        self.scorer = _scorer(source, options)
        self.reward = _one_number(reward)
        self.on_error = on_error

    @property
    def name(self) -> str:
        """What a trainer should log the total as."""
        if isinstance(self.reward, str):
            return self.reward
        return "+".join(self.reward.weights) if isinstance(self.reward, Mixture) else "rewardzoo"

    def score(self, images: Any, prompts: Sequence[Any], metadata: Metadata | None = None) -> Scores:
        """Score N images, in whatever form a row has them, against N prompts or conversations.

        Raises:
            ItemsFailedError: some could not be scored and `on_error` is "raise".
            RequestError, UnavailableError, ValueError: as `Scorer.score`.
        """
        return self._shaped(self.scorer.score_result(**self._arguments(images, prompts, metadata)))

    async def score_async(
        self, images: Any, prompts: Sequence[Any], metadata: Metadata | None = None
    ) -> Scores:
        """Score as `score`, without holding up the event loop. Cancelled, it sends nothing more."""
        future = self.scorer.submit_result(**self._arguments(images, prompts, metadata))
        try:
            async with asyncio.timeout(self.scorer.patience):
                return self._shaped(await asyncio.wrap_future(future))
        except TimeoutError as error:
            raise DeadlineError(f"no answer within {self.scorer.patience:g} s") from error

    def _arguments(self, images: Any, prompts: Sequence[Any], metadata: Metadata | None) -> dict[str, Any]:
        return {
            # A batch that is one array or tensor leaves its device in one copy.
            "images": images if is_batch(images) else [image_of(image) for image in images],
            "prompts": [prompt_of(prompt) for prompt in prompts],
            "reward": self.reward,
            "metadata": metadata,
        }

    def _shaped(self, result: ScoreResult) -> Scores:
        if result.errors and self.on_error == "raise":
            raise ItemsFailedError(result.errors, result)
        totals: list[float | None] = [float(score) for score in result.scores]
        if self.on_error == "none":
            totals = [None if score != score else score for score in totals]
        return Scores(totals, {name: part.scores.tolist() for name, part in result.parts.items()})


def judge_of(config: Mapping[str, Any]) -> Judge:
    """Return the judge of a configuration (`url`, `reward` and options); one a process for each."""
    return _made(json.dumps(config, sort_keys=True, default=_plain))


@cache  # as many as a training's configuration names
def _made(config: str) -> Judge:
    options = json.loads(config)
    return Judge(options.pop("url"), options.pop("reward", None), **options)


def _plain(value: object) -> object:
    # OmegaConf's containers, of which trainers' configurations are made.
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"a configuration is made of JSON, it cannot have {type(value).__name__}: {value!r:.80}")


def _scorer(source: Source, options: Mapping[str, Any]) -> Scorer:
    if isinstance(source, str | list | tuple):
        return RewardClient(source, **{"token": os.environ.get(_TOKEN), **options})
    if options:
        raise ValueError(
            f"{', '.join(options)} cannot be set for a {type(source).__name__}: give the URL, or set it there"
        )
    if isinstance(source, AsyncRewardClient):
        return source.sync
    if not isinstance(source, Scorer):
        raise ValueError(f"what scores must be a client, LocalRewards or a URL, got {source!r:.80}")
    return source


def _one_number(reward: Reward | None) -> str | Mixture | None:
    if reward is None or isinstance(reward, str | Mixture):
        return reward
    if isinstance(reward, Mapping):
        return Mixture(reward)
    raise ValueError(
        f"a trainer takes one number an image: give weights, as in {{{reward[0]!r}: 1.0}}, got {list(reward)}"
    )
