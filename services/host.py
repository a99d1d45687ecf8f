"""The rewards of one server: each a model on its device with a batcher in front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from rewardzoo.clients import wire
from rewardzoo.clients.images import decode_image
from rewardzoo.errors import ItemError, NotServedError, UnavailableError
from rewardzoo.services.batcher import Batcher, Item
from rewardzoo.services.config import ServeConfig

if TYPE_CHECKING:
    from rewardzoo.rewards import Batch, Outcome, RewardModel, Score

Load = Callable[..., "RewardModel"]
"""As `rewardzoo.rewards.load`."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    batch: Batch
    rows: Sequence[int]
    errors: Mapping[int, ItemError]


class HostedReward:
    """A loaded model and the batcher that feeds it."""

    def __init__(self, model: RewardModel, config: ServeConfig) -> None:
        self.model = model
        self.scored = 0
        """Items answered since the start, failed ones too."""
        self.batcher: Batcher[_Prepared, Score] = Batcher(
            self._prepare,
            self._run,
            max_batch=model.spec.max_batch,
            window=config.window_ms / 1e3,
            max_queue=config.max_queue,
        )

    @property
    def ready(self) -> bool:
        """Whether it takes requests now."""
        return self.batcher.failure is None

    @property
    def waiting(self) -> int:
        """How many items stand in its queue."""
        return self.batcher.waiting

    async def score(self, items: Sequence[Item | ItemError], timeout: float) -> list[Outcome]:
        """Score the items; errors stay in their places. Raises as `Batcher.submit`."""
        wanted = [i for i in items if isinstance(i, Item)]
        scored = iter(await self.batcher.submit(wanted, timeout))
        self.scored += len(wanted)
        return [next(scored) if isinstance(item, Item) else item for item in items]

    def _prepare(self, items: Sequence[Item]) -> _Prepared:
        images, rows = [], []
        errors: dict[int, ItemError] = {}
        for i, item in enumerate(items):
            try:
                images.append(decode_image(item.image) if isinstance(item.image, bytes) else item.image)
                rows.append(i)
            except ItemError as error:
                errors[i] = error
        wanted = [items[i] for i in rows]
        batch = self.model.prepare(images, [i.prompt for i in wanted], [i.metadata for i in wanted])
        return _Prepared(batch, rows, errors)

    def _run(self, prepared: _Prepared) -> list[Outcome]:
        outcomes: dict[int, Outcome] = dict(prepared.errors)
        try:
            found = self.model.run(prepared.batch)
        except torch.AcceleratorError as error:
            # The CUDA context is gone for good, so trying the items one by one would fail them all.
            raise UnavailableError(f"the device of {self.model.name} is lost, restart the server") from error
        outcomes.update(zip(prepared.rows, map(_plain, found), strict=True))
        return [outcomes[i] for i in range(len(outcomes))]


def _plain(outcome: Outcome) -> Outcome:
    if isinstance(outcome, ItemError) or not outcome.details:
        return outcome
    try:
        return replace(outcome, details=wire.plain(outcome.details))
    except ItemError as error:
        return error


class Host:
    """All rewards of a server, by full name."""

    def __init__(self, config: ServeConfig, models: Sequence[RewardModel]) -> None:
        self.config = config
        self.rewards = {model.name: HostedReward(model, config) for model in models}

    @classmethod
    def load(cls, config: ServeConfig, default: Sequence[str], load: Load) -> Host:
        """Load the rewards of the config, or `default` where it has none.

        Raises:
            ValueError: neither names a reward.
            UnknownRewardError, WeightsError: as `rewardzoo.rewards.load`.
        """
        names = config.rewards or default
        if not names:
            raise ValueError(
                "no rewards to serve: set REWARDZOO_REWARDS, e.g. to hpsv2:mini,imagereward:mini"
            )
        if unused := sorted(config.weights.keys() - set(names)):
            raise ValueError(f"REWARDZOO_WEIGHTS names {unused}, but the rewards are {list(names)}")
        return cls(config, [load(n, device=config.device, weights=config.weights.get(n)) for n in names])

    @property
    def ready(self) -> bool:
        """Whether every reward takes requests now."""
        return all(reward.ready for reward in self.rewards.values())

    def find(self, name: str) -> HostedReward:
        """Return the reward called `name`; a bare family means its one released variant here.

        Raises:
            NotServedError: there is none, or several; the message has what is hosted.
        """
        if name in self.rewards:
            return self.rewards[name]
        released = [
            reward
            for reward in self.rewards.values()
            if reward.model.spec.name == name and not reward.model.variant.is_mini
        ]
        if len(released) != 1:
            raise NotServedError(
                f"reward {name!r:.100} is not served here, there are: {', '.join(self.rewards)}"
            )
        return released[0]

    async def start(self) -> None:
        """Start the batchers; `ready` from here on."""
        for reward in self.rewards.values():
            reward.batcher.start()

    async def stop(self) -> None:
        """Stop the batchers; callers that wait get an `UnavailableError`."""
        for reward in self.rewards.values():
            await reward.batcher.stop()
