"""More pictures at test time: the best of N by a reward, and PARM's search that gives up hopeless ones early.

Source: PARM (arXiv 2501.13926). Its published code draws every path to its end; here one without potential is
given up, and what that saves is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rewardzoo.clients import Scorer
from rewardzoo.errors import RewardZooError
from rewardzoo.trainers.policies.partial import decode_partial
from rewardzoo.trainers.policies.policy import ARImagePolicy, Sampling
from rewardzoo.trainers.prompts import Prompt
from rewardzoo.trainers.rollout import draw

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What a search found for P prompts out of `n` paths each.

    `images` uint8 (P, H, W, 3) are the chosen ones, `paths` (P,) which of the n they are, `scores` (P,) by
    what they were chosen. Of each path `drawn` (P, n) tokens were drawn, of the `tokens_per_image` it has.
    """

    images: NDArray[np.uint8]
    paths: NDArray[np.int64]
    scores: Floats
    drawn: NDArray[np.int64]
    tokens_per_image: int

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Which paths were drawn to their end: (P, n)."""
        return np.asarray(self.drawn == self.tokens_per_image)

    @property
    def tokens_drawn(self) -> int:
        """How many tokens were drawn, of all paths."""
        return int(self.drawn.sum())

    @property
    def saved(self) -> float:
        """The share of tokens that did not have to be drawn."""
        return 1 - self.tokens_drawn / (self.drawn.size * self.tokens_per_image)


def best_of_n(
    policy: ARImagePolicy,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    reward: str,
    n: int,
    *,
    sampling: Sampling,
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
) -> Found:
    """Draw n pictures for each prompt, and choose the one with the highest score, the first of equals.

    `metadata` is added to each item's own, as `{"stage": "selection"}` for `parm`.

    Raises:
        ValueError: n is less than 1, or there is no prompt.
        RewardZooError: none of a prompt's pictures could be scored.
    """
    paths = _Paths(policy, prompts, n, sampling, seed)
    paths.drawing.advance(policy.tokens_per_image)
    return paths.choose(scorer, reward, metadata or {}, np.full((len(prompts), n), np.nan))


def parm_search(
    policy: ARImagePolicy,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    reward: str,
    n: int,
    *,
    steps: Sequence[int],
    sampling: Sampling,
    seed: int = 0,
    threshold: float = 0.5,
) -> Found:
    """Draw n paths for each prompt; give up those without potential, and select among the rest.

    After each of `steps`, in tokens, PARM is shown every path that was not clear before. Once it is clear
    its potential is judged, once; below `threshold` it is given up. Where all of a prompt's paths would be,
    the one of the highest potential goes on. Of the finished ones the highest by PARM's selection is chosen.

    Raises:
        ValueError: steps do not rise within a picture; n is less than 1, or there is no prompt.
        RewardZooError: a path could not be judged, or none of a prompt's pictures be scored.
    """
    total = policy.tokens_per_image
    if list(steps) != sorted(set(steps)) or not all(1 <= step < total for step in steps):
        raise ValueError(f"steps must rise from 1 to less than {total} tokens, got {list(steps)}")
    paths = _Paths(policy, prompts, n, sampling, seed)
    potential = np.full((len(prompts), n), np.nan)
    for step in steps:
        paths.drawing.advance(step)
        asked = np.flatnonzero(np.isnan(potential[paths.alive]))
        if not len(asked):
            break
        _judge(paths, asked, step, scorer, reward, potential)
        paths.give_up(potential, threshold)
    paths.drawing.advance(total)
    return paths.choose(scorer, reward, {"stage": "selection"}, potential)


class _Paths:
    """The paths of a search: `alive` (two index arrays: prompt, path) names the rows of `drawing`."""

    def __init__(
        self,
        policy: ARImagePolicy,
        prompts: Sequence[Prompt],
        n: int,
        sampling: Sampling,
        seed: int,
    ) -> None:
        if n < 1 or not prompts:
            raise ValueError(f"a search needs prompts and at least one path each, got {len(prompts)} and {n}")
        self.policy, self.prompts, self.n = policy, prompts, n
        places = [(prompt, path) for prompt in range(len(prompts)) for path in range(n)]
        uniforms = draw((seed,), places, policy.tokens_per_image)
        batch = policy.encode([prompt.text for prompt in prompts]).repeat_interleave(n)
        self.drawing = policy.begin(batch, torch.from_numpy(uniforms), sampling)
        rows = np.array(places).T
        self.alive: tuple[NDArray[np.int64], NDArray[np.int64]] = (rows[0], rows[1])
        self._drawn = np.full((len(prompts), n), policy.tokens_per_image)

    def give_up(self, potential: Floats, threshold: float) -> None:
        """Draw no more of paths whose potential (P, n) is too low, but for the best of a prompt's last."""
        left = np.full(potential.shape, -np.inf)
        left[self.alive] = np.nan_to_num(potential[self.alive], nan=np.inf)  # not judged yet: it may be good
        best = left >= left.max(1, keepdims=True)
        kept = ((left >= threshold) | best)[self.alive]
        if not kept.all():
            given_up = self.alive[0][~kept], self.alive[1][~kept]
            self._drawn[given_up] = self.drawing.tokens.shape[1]
            self.drawing.keep(torch.from_numpy(np.flatnonzero(kept)))
            self.alive = (self.alive[0][kept], self.alive[1][kept])

    def asked(self, rows: NDArray[np.int64]) -> list[Prompt]:
        """Return the prompts of rows of the drawing."""
        return [self.prompts[self.alive[0][row]] for row in rows]

    def choose(self, scorer: Scorer, reward: str, note: Mapping[str, Any], potential: Floats) -> Found:
        """Score what is finished, and choose; equal scores are told apart by potential, then by place."""
        count = len(self.prompts)
        rows = np.arange(len(self.alive[0]))
        images = self.policy.decode(self.drawing.tokens)
        asked = self.asked(rows)
        result = scorer.score_result(
            images,
            [prompt.text for prompt in asked],
            reward=reward,
            metadata=[{**prompt.metadata, **note} for prompt in asked],
        )
        scores = np.full((count, self.n), -np.inf)
        scores[self.alive] = np.where(np.isnan(result.scores), -np.inf, result.scores)
        if lost := [p.text for p, best in zip(self.prompts, scores.max(1), strict=True) if np.isneginf(best)]:
            raise RewardZooError(
                f"no picture of {lost[0]!r} could be scored: {next(iter(result.errors.values()), '')}"
            )
        ties = np.where(scores == scores.max(1, keepdims=True), np.nan_to_num(potential, nan=0.0), -np.inf)
        paths = ties.argmax(1)
        place = np.full((count, self.n), -1)
        place[self.alive] = rows
        chosen = np.arange(count), paths
        return Found(
            images=images[place[chosen]],
            paths=paths,
            scores=scores[chosen],
            drawn=self._drawn,
            tokens_per_image=self.policy.tokens_per_image,
        )


def _judge(
    paths: _Paths,
    rows: NDArray[np.int64],
    step: int,
    scorer: Scorer,
    reward: str,
    potential: Floats,
) -> None:
    """Note the potential of those rows that are clear now."""
    unfinished = decode_partial(paths.policy, paths.drawing.tokens[torch.from_numpy(rows)], step)
    asked = paths.asked(rows)
    result = scorer.score_result(
        unfinished,
        [prompt.text for prompt in asked],
        reward=reward,
        metadata=[{**prompt.metadata, "stage": "potential"} for prompt in asked],
    )
    for i, error in result.errors.items():
        raise RewardZooError(f"a path of {asked[i].text!r} could not be judged: {error}")
    for row, details in zip(rows, result.details, strict=True):
        if details["clear"]:
            potential[paths.alive[0][row], paths.alive[1][row]] = details["potential"]
