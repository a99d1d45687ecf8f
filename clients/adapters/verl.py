"""verl: `compute_score` for `custom_reward_function`, without a line of code.

    python -m verl.trainer.main_ppo \\
        reward.custom_reward_function.path=pkg://rewardzoo.clients.adapters.verl \\
        reward.custom_reward_function.name=async_compute_score \\
        +reward.custom_reward_function.reward_kwargs.url=http://127.0.0.1:3000 \\
        +reward.custom_reward_function.reward_kwargs.reward=hpsv2:v2.1

(before 0.8 the key is `custom_reward_function`, without `reward.`). `compute_score` is the same for the
manager `remote`, which refuses coroutine functions. More in `reward_kwargs`: `image_key` and `prompt_key` say
where in `extra_info` they are, `metadata_keys` what else of it the reward is told; `reward` may be weights by
name, and every option of `RewardClient` is taken.

verl calls it for one sample at a time, from many tasks at once: the client sends those that meet as one
request. The score of an agent loop's image is meant: put it into `extra_info`, or into the loop's
`tool_extra_fields`, which verl merges into it. The prompt is `extra_info["prompt"]`, else `ground_truth`.

verl has no value for "could not score": a NaN would reach the advantages, so it raises unless `on_error:
nan`. All keys of the answer are logged, so those of a mixture are there beside `score`.

Source: `verl/trainer/ppo/reward.py`, `verl/experimental/reward_loop/reward_manager/naive.py` (0.9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewardzoo.clients.adapters._columns import only
from rewardzoo.clients.adapters._judge import judge_of


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    image_key: str = "image",
    prompt_key: str = "prompt",
    metadata_keys: Sequence[str] = (),
    reward_router_address: str | None = None,
    reward_model_tokenizer: object = None,
    **config: Any,
) -> dict[str, float | None]:
    """Score one sample: `{"score": …}`, with the raw score of each reward of a mixture beside it.

    `config` is `url`, `reward`, `on_error` and the options of `RewardClient`.

    Raises:
        ItemsFailedError: it could not be scored and `on_error` is "raise".
        RequestError, UnavailableError: the server refused the request, or could not answer in time.
        ValueError: there is no image, or no prompt, in the sample.
    """
    sample = _sample(ground_truth, extra_info, image_key, prompt_key, metadata_keys)
    return judge_of(config).score(*sample).first()


async def async_compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    image_key: str = "image",
    prompt_key: str = "prompt",
    metadata_keys: Sequence[str] = (),
    reward_router_address: str | None = None,
    reward_model_tokenizer: object = None,
    **config: Any,
) -> dict[str, float | None]:
    """Score as `compute_score`, without a thread a sample."""
    sample = _sample(ground_truth, extra_info, image_key, prompt_key, metadata_keys)
    return (await judge_of(config).score_async(*sample)).first()


def _sample(
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None,
    image_key: str,
    prompt_key: str,
    metadata_keys: Sequence[str],
) -> tuple[list[Any], list[Any], list[dict[str, Any]] | None]:
    info = extra_info or {}
    if image_key not in info:
        raise ValueError(f"extra_info has no {image_key!r}, only {', '.join(sorted(info)) or 'nothing'}")
    return [info[image_key]], [info.get(prompt_key, ground_truth)], only(info, metadata_keys)
