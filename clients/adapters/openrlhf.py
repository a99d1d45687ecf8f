"""OpenRLHF: the `reward_func` of a file that `--reward.remote_url` names.

    # reward_func.py, for --reward.remote_url reward_func.py
    from rewardzoo.clients.adapters import openrlhf

    reward_func = openrlhf.reward_func("http://127.0.0.1:3000", "hpsv2:v2.1")

Or no file at all: a server with `REWARDZOO_COMPAT=openrlhf` answers `--reward.remote_url
http://127.0.0.1:3000/openrlhf/get_reward` itself (docs/serving.md).

OpenRLHF calls `reward_func(queries, prompts, labels)` with one sample, from a thread, and has no field for
images: a label is the image, or an object `{"image": …, "prompt": …, "metadata": {…}}` or its JSON, with the
image in any form that the client takes (a path, base64). Without a prompt there the trainer's is taken, as
its chat template made it. The answer is `{"rewards", "scores", "extra_logs"}` of tensors (N,), as in its own
examples.

What this raises OpenRLHF only logs, as INFO, and goes on with no reward for the sample.

Source: `openrlhf/utils/agent.py`, `SingleTurnAgentExecutor` (0.11).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

from rewardzoo.clients.adapters._judge import Judge, Source
from rewardzoo.clients.scorer import Reward

RewardFunc = Callable[[Sequence[str], Sequence[str], Sequence[Any]], dict[str, Any]]


def reward_func(
    source: Source,
    reward: Reward | None = None,
    *,
    on_error: Literal["raise", "nan"] = "raise",
    **options: Any,
) -> RewardFunc:
    """Return `reward_func(queries, prompts, labels)`; the rewards of a mixture are its `extra_logs`.

    `reward`, `on_error` and `options` are as in `Judge`.
    """
    judge = Judge(source, reward, on_error=on_error, **options)

    def score(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
        samples = [parse_label(*pair) for pair in zip(labels, prompts, strict=True)]
        images, texts, notes = zip(*samples, strict=True) if samples else ((), (), ())
        scores = judge.score(images, texts, list(notes) if any(notes) else None)
        tensor = import_module("torch").tensor  # which OpenRLHF has in any case, and this package need not
        rewards = tensor(scores.totals)
        logs = {name: tensor(values) for name, values in scores.parts.items()}
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}

    return score


def parse_label(label: Any, prompt: str) -> tuple[Any, str, Mapping[str, Any]]:
    """Return the image, the prompt and the metadata of a sample. What is no object is the image itself.

    Raises:
        ValueError: an object without an image.
    """
    if isinstance(label, str) and label.lstrip().startswith("{"):
        label = json.loads(label)
    if not isinstance(label, Mapping):
        return label, prompt, {}
    if "image" not in label:
        raise ValueError(
            f"a label must have an 'image', this one has {', '.join(map(str, label)) or 'nothing'}"
        )
    return label["image"], label.get("prompt", prompt), label.get("metadata", {})
