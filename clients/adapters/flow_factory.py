"""Flow-Factory: a pointwise reward model that asks a server.

    rewards:
      - name: hpsv2
        reward_model: rewardzoo.clients.adapters.flow_factory.ServedReward
        url: http://127.0.0.1:3000
        reward: hpsv2:v2.1
        batch_size: 64
        async_reward: true

Every other key is an option of `RewardClient` (`timeout`, a list of replicas as `url`), or `on_error`;
`reward` may be weights by name. Upstream's own `RemotePointwiseRewardModel` works too, with a server that has
`REWARDZOO_COMPAT=flow_factory` and `server_url: http://127.0.0.1:3000/flow_factory` (docs/serving.md).

Flow-Factory imports the class by its path, makes it with `(config, accelerator)` and calls it with the fields
of its samples that its signature names: `prompt`, texts, and `image`, PIL images. It expects a
`RewardModelOutput`. It has no value for "could not score", so that raises unless `on_error: nan`.

Source: `flow_factory/rewards/abc.py`, `registry.py`, `reward_processor.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

from rewardzoo.clients.adapters._judge import judge_of


def __getattr__(name: str) -> type:
    """Make `ServedReward` when it is first asked for: its base class is Flow-Factory's."""
    if name != "ServedReward":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _served_reward()


@cache
def _served_reward() -> type:
    upstream: Any = import_module("flow_factory.rewards.abc")

    class ServedReward(upstream.PointwiseRewardModel):  # type: ignore[misc]
        """Scores by a rewardzoo server."""

        required_fields = ("prompt", "image")
        use_tensor_inputs = False

        def __init__(self, config: Any, accelerator: Any) -> None:
            super().__init__(config, accelerator)
            self.judge = judge_of(config.extra_kwargs)

        def __call__(self, prompt: Sequence[str], image: Sequence[Any]) -> Any:
            scores = self.judge.score(image, prompt)
            return upstream.RewardModelOutput(rewards=scores.totals, extra_info=scores.parts)

    return ServedReward
