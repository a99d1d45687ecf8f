"""`LocalRewards`: the same `score` as `RewardClient`'s, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from rewardzoo.clients.cache import ScoreCache
from rewardzoo.clients.in_process import InProcess, Model
from rewardzoo.clients.scorer import Scorer


class LocalRewards(Scorer):
    """Scores images with rewards loaded here, by the code and in the batches of a server.

        scores = LocalRewards(["hpsv2:mini"]).score(images, prompts)

    Where only one is loaded, calls need not name it. `weights` maps a name of `rewards` to a file to use
    instead of the published one. `cache` holds scores that are known already.

    Raises:
        UnknownRewardError, WeightsError: a reward cannot be loaded.
        MissingExtraError: torch is not installed.
    """

    def __init__(
        self,
        rewards: Sequence[str],
        *,
        device: str = "auto",
        weights: Mapping[str, str | Path] | None = None,
        cache: ScoreCache | None = None,
    ) -> None:
        if isinstance(rewards, str):
            raise ValueError(f"rewards must be a list of names, got a string: use [{rewards!r}]")
        weights = weights or {}
        if strange := sorted(set(weights) - set(rewards)):
            raise ValueError(f"weights are given for {strange}, which are not among {rewards}")
        from rewardzoo.rewards import load

        self._start({n: load(n, device=device, weights=weights.get(n)) for n in rewards}, cache)

    @classmethod
    def of(cls, models: Iterable[Model] | Mapping[str, Model], *, cache: ScoreCache | None = None) -> Self:
        """Score with models that are already loaded, by their names or by the keys of a mapping."""
        self = cls.__new__(cls)
        named = models if isinstance(models, Mapping) else {model.name: model for model in models}
        self._start(named, cache)
        return self

    def _start(self, models: Mapping[str, Model], cache: ScoreCache | None = None) -> None:
        if not models:
            raise ValueError("no rewards given: name at least one, e.g. ['hpsv2:mini']")
        only = next(iter(models)) if len(models) == 1 else None
        # A model runs one part at a time, and no clock stops a forward that has begun.
        transport = InProcess(models)
        super().__init__(transport, timeout=float("inf"), max_in_flight=1, reward=only, cache=cache)
        self._unnamed = f"several rewards are loaded, name one: {', '.join(models)}"
