"""flow_grpo and DiffusionNFT: a stand-in for their `multi_score`.

In front of the training script (`scripts/train_sd3.py` and its like), where `flow_grpo.rewards` is imported:

    import flow_grpo.rewards
    from rewardzoo.clients.adapters import flow_grpo as served

    flow_grpo.rewards.multi_score = served.multi_score("http://127.0.0.1:3000", normalize={
        "pickscore": "flow_grpo/pickscore",
    })

and in the config, as before, rewards with weights: `config.reward_fn = {"pickscore": 1.0, "imagereward":
0.5}`. The names are those of the server; `names={"clip": "clipscore:openai-l14"}` maps others, because a key
of such a config cannot have a dot. All rewards of a batch are scored in one call, the images sent once.

The trainers call `multi_score(device, {name: weight})` for `f(images, prompts, metadata)` and expect `({name:
scores, …, "avg": weighted sum}, {})`. Images are a tensor (N, 3, H, W) of floats, which becomes uint8 as
upstream does it, or an array (N, H, W, 3) of uint8; nothing is compressed on the way. Unlike upstream's, a
score by name is raw where `normalize` changes what is summed.

Source: `flow_grpo/rewards.py`, `multi_score`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rewardzoo.clients.adapters._columns import to_uint8
from rewardzoo.clients.adapters._judge import Judge, Source
from rewardzoo.clients.mixing import Mixture
from rewardzoo.clients.normalizers import IDENTITY, Normalizer

Details = tuple[dict[str, NDArray[np.float32]], dict[str, Any]]
MultiScore = Callable[[Any, Mapping[str, float]], Callable[..., Details]]


def multi_score(
    source: Source,
    *,
    names: Mapping[str, str] | None = None,
    normalize: Mapping[str, Normalizer | str] | Normalizer | str = IDENTITY,
    held_out: Sequence[str] = (),
    with_metadata: bool = False,
    on_error: Literal["raise", "nan"] = "raise",
    **options: Any,
) -> MultiScore:
    """Return what stands in for `multi_score`.

    `normalize` and `held_out` are as in `Mixture`, by the names of the config. With `with_metadata` an item's
    metadata goes to the rewards. The trainers have no value for "could not score": it raises.
    """
    served = names or {}

    def make(device: Any, score_dict: Mapping[str, float]) -> Callable[..., Details]:
        asked = {served.get(name, name): name for name in [*score_dict, *held_out]}
        scale = normalize
        if isinstance(normalize, Mapping):
            scale = {served.get(name, name): how for name, how in normalize.items()}
        mixture = Mixture(
            {served.get(name, name): weight for name, weight in score_dict.items()},
            normalize=scale,
            held_out=[served.get(name, name) for name in held_out],
        )
        judge = Judge(source, mixture, on_error=on_error, **options)

        def score(
            images: Any, prompts: Sequence[str], metadata: Any = None, *_: object, **__: object
        ) -> Details:
            # Behind them come `ref_images` and `only_strict`, which rewards of a server have no use for.
            notes = list(metadata) if with_metadata else None
            scores = judge.score(to_uint8(images), prompts, notes)
            details = {asked[name]: np.array(part, dtype=np.float32) for name, part in scores.parts.items()}
            return {**details, "avg": np.array(scores.totals, dtype=np.float32)}, {}

        return score

    return make
