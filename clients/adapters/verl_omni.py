"""verl-omni: `compute_score` for the image that a diffusion policy made.

    python -m verl_omni.trainer.main_diffusion \\
        reward.custom_reward_function.path=pkg://rewardzoo.clients.adapters.verl_omni \\
        reward.custom_reward_function.name=compute_score \\
        +reward.custom_reward_function.reward_kwargs.url=http://127.0.0.1:3000 \\
        +reward.custom_reward_function.reward_kwargs.reward=hpsv2:v2.1

It takes the place of upstream's `http_scorer_client`, which sends JPEG in pickle. More in `reward_kwargs`:
`frame` of a video (0 is the first), `metadata_keys` of `extra_info` that the reward is told, weights by name
as `reward`, every option of `RewardClient`.

verl-omni's visual reward manager awaits `compute_score(data_source=, solution_image=, ground_truth=,
extra_info=)` for one sample at a time; those that meet share a request. The image is uint8 (C, H, W), or (T,
C, H, W), and the ground truth the prompt. It raises where it cannot score, unless `on_error: nan`.

Source: `verl_omni/reward_loop/reward_manager/visual.py`,
`verl_omni/utils/reward_score/http_scorer_client.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewardzoo.clients.adapters._columns import only
from rewardzoo.clients.adapters._judge import judge_of


async def compute_score(
    data_source: str,
    solution_image: Any,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    frame: int = 0,
    metadata_keys: Sequence[str] = (),
    reward_router_address: str | None = None,
    reward_model_tokenizer: object = None,
    model_name: str | None = None,
    **config: Any,
) -> dict[str, float | None]:
    """Score one image: `{"score": …}`, with the raw score of each reward of a mixture beside it.

    `config` is `url`, `reward`, `on_error` and the options of `RewardClient`. Raises as `verl.compute_score`.
    """
    image = solution_image[frame] if solution_image.ndim == 4 else solution_image
    return (
        await judge_of(config).score_async([image], [ground_truth], only(extra_info or {}, metadata_keys))
    ).first()
