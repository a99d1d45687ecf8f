"""NeMo-RL: an environment whose only step is a score.

    from nemo_rl.environments.utils import register_env

    register_env("rewardzoo", "rewardzoo.clients.adapters.nemo.RewardEnvironment")

    env:
      rewardzoo:
        url: http://127.0.0.1:3000
        reward: hpsv2:v2.1

Every other key is an option of `RewardClient`, or `image_key`, `prompt_key`, `metadata_keys`: where in an
item's `metadata`, NeMo-RL's `extra_env_info`, its image, its prompt and what else the reward is told are.
Without a prompt there, it is what the last user's message says.

NeMo-RL calls `step(message_log_batch, metadata)` of the Ray actor and expects an `EnvironmentReturn`: here
one turn, terminated, with rewards (B,). It has no value for "could not score", so that raises unless
`on_error: nan`.

Source: `nemo_rl/environments/interfaces.py`, `reward_model_environment.py`, `utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from rewardzoo.clients.adapters._columns import prompt_of
from rewardzoo.clients.adapters._judge import judge_of


def __getattr__(name: str) -> Any:
    """Make `RewardEnvironment`, a Ray actor, when it is first asked for: its base class is NeMo-RL's."""
    if name != "RewardEnvironment":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("ray").remote(environment_class())


@cache
def environment_class() -> type:
    """Return the class of the environment, not an actor yet."""
    upstream: Any = import_module("nemo_rl.environments.interfaces")
    torch: Any = import_module("torch")

    class RewardEnvironment(upstream.EnvironmentInterface):  # type: ignore[misc]
        """Scores what the policy made by a rewardzoo server."""

        def __init__(self, config: Mapping[str, Any]) -> None:
            options = dict(config)
            self.image_key = options.pop("image_key", "image")
            self.prompt_key = options.pop("prompt_key", "prompt")
            self.metadata_keys = options.pop("metadata_keys", ())
            self.judge = judge_of(options)

        def step(self, message_log_batch: Sequence[Any], metadata: Sequence[Mapping[str, Any]]) -> Any:
            """Score a batch; one turn, and the end."""
            images = [info.get(self.image_key) for info in metadata]
            prompts = [
                info[self.prompt_key] if self.prompt_key in info else prompt_of(log)
                for log, info in zip(message_log_batch, metadata, strict=True)
            ]
            keys = self.metadata_keys
            notes = [{key: info[key] for key in keys if key in info} for info in metadata] if keys else None
            scores = self.judge.score(images, prompts, notes)
            said = [f"Environment: {score}" for score in scores.totals]
            return upstream.EnvironmentReturn(
                observations=[{"role": "environment", "content": text} for text in said],
                metadata=list(metadata),
                next_stop_strings=[None] * len(said),
                rewards=torch.tensor(scores.totals, dtype=torch.float32),
                terminateds=torch.ones(len(said), dtype=torch.bool),
                answers=None,
            )

        def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
            """Return the batch as it is, with the mean reward."""
            return batch, {"reward": batch["rewards"].float().mean().item()}

    return RewardEnvironment
