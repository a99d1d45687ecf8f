"""More pictures at test time: what the best of N by an ORM, by a PARM and by PARM's search are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rewardzoo import RewardClient
from rewardzoo.clients.compare.best_of_n import expected_picks
from rewardzoo.clients.compare.search_saving import search_point
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.clients.compare.summaries import Estimate
from rewardzoo.trainers.config import PromptsSection, load_config
from rewardzoo.trainers.critic.build import without
from rewardzoo.trainers.critic.config import CriticConfig
from rewardzoo.trainers.lab import judge
from rewardzoo.trainers.lab.study.settings import GIVE_UP_BELOW
from rewardzoo.trainers.policies import JanusPolicy
from rewardzoo.trainers.prompts import Prompt, load_prompts
from rewardzoo.trainers.rollout import draw
from rewardzoo.trainers.search import parm_search

PATHS = (4, 8)
THRESHOLDS = (0.5, GIVE_UP_BELOW)
"""Of potential: the one by which upstream says yes or no, and the one of `rewardzoo compare lab`."""
PROMPTS, PROMPT_SEED = 250, 7000
SEED = 1
BOOTSTRAP = Bootstrap()
Floats = NDArray[np.float64]


def search(client: RewardClient) -> dict[str, Any]:
    """Compare selectors on the same pictures, for prompts that no critic was trained on.

    `orm` and `parm_selection` pick among all N pictures, expected over all subsets of N of the largest;
    `parm_search` also gives up paths without potential, and is run on the first N, as `orm_among_first` is.
    `random` is any picture, `oracle` the exact judge's pick.
    """
    config = load_config(CriticConfig, "lab_parm")
    policy = JanusPolicy.load("mini")
    prompts = fresh_prompts(config)
    sampling = config.data.sampling.sampling()
    images = pictures(policy, prompts, max(PATHS), config)
    texts = [prompt.text for prompt in prompts for _ in range(max(PATHS))]
    shape = len(prompts), max(PATHS)
    right = np.array([judge(i, t).correct for i, t in zip(images, texts, strict=True)], float).reshape(shape)
    selection = [{"stage": "selection"}] * len(texts)
    scores = {
        "orm": client.score(images, texts, reward="orm:orm").reshape(shape),
        "parm_selection": client.score(images, texts, reward="parm:parm", metadata=selection).reshape(shape),
        "oracle": right,
    }
    worth = {
        name: np.stack([expected_picks(s, r) for s, r in zip(each, right, strict=True)])
        for name, each in scores.items()
    }
    per_image = policy.tokens_per_image
    steps = [round(share * per_image) for share in config.data.steps]
    found: dict[str, Any] = {
        "prompts": len(prompts),
        "seed": SEED,
        "steps": steps,
        "random": mean(right.mean(1)),
    }
    for n in PATHS:
        picked = {name: values[:, n - 1] for name, values in worth.items()}
        of_first = right[np.arange(len(prompts)), scores["orm"][:, :n].argmax(1)]
        found[f"of_{n}"] = of_n = {
            **{name: mean(values) for name, values in picked.items()},
            "orm_among_first": mean(of_first),
            "orm_over_random": mean(picked["orm"] - right.mean(1)),
            "parm_selection_over_orm": mean(picked["parm_selection"] - picked["orm"]),
        }
        for threshold in THRESHOLDS:
            result = parm_search(
                policy,
                prompts,
                client,
                "parm:parm",
                n,
                steps=steps,
                sampling=sampling,
                seed=SEED,
                threshold=threshold,
            )
            chosen = right[np.arange(len(prompts)), result.paths]
            drawn = result.drawn.sum(1) / per_image
            point = search_point("in_domain", n, chosen, drawn, worth["orm"], BOOTSTRAP)
            of_n[f"parm_search_below_{threshold:g}"] = {
                "right": mean(chosen),
                "over_orm_among_the_same": mean(chosen - of_first),
                "over_random": mean(chosen - right.mean(1)),
                "images_drawn": told(point.drawn),
                "orm_images_for_the_same": told(point.equal_n),
                "saved_of_orm_for_the_same": told(point.saved),
                "no_orm_is_as_good": point.capped,
                "saved_of_all": result.saved,
                "given_up": float(1 - result.finished.mean()),
                "given_up_though_right": share(right[:, :n][~result.finished]),
            }
    return found


def fresh_prompts(config: CriticConfig) -> list[Prompt]:
    """In-domain prompts that are neither in the critics' training nor in the splits held out from it."""
    sections = [config.data.train, *config.data.held_out.values()]
    known = [prompt for section in sections if section for prompt in load_prompts(section)]
    asked = PromptsSection(source="lab:in_domain", count=2 * PROMPTS, seed=PROMPT_SEED)
    return without(load_prompts(asked), known)[:PROMPTS]


def pictures(
    policy: JanusPolicy, prompts: Sequence[Prompt], n: int, config: CriticConfig
) -> NDArray[np.uint8]:
    """Draw the pictures of n paths of each prompt, (P * n, H, W, 3): the very ones of `parm_search`."""
    places = [(prompt, path) for prompt in range(len(prompts)) for path in range(n)]
    uniforms = torch.from_numpy(draw((SEED,), places, policy.tokens_per_image))
    batch = policy.encode([prompt.text for prompt in prompts]).repeat_interleave(n)
    some = range(0, len(places), config.data.sampling.batch_size)
    rows = [slice(start, start + config.data.sampling.batch_size) for start in some]
    sampling = config.data.sampling.sampling()
    return np.concatenate(
        [policy.decode(policy.sample(batch[row], uniforms[row], sampling).tokens) for row in rows]
    )


def mean(values: Floats) -> dict[str, float]:
    """Mean over prompts, with its 95% interval by the bootstrap over prompts."""
    return told(BOOTSTRAP.mean(values))


def told(found: Estimate) -> dict[str, float]:
    return {"mean": found.value, "low": found.low, "high": found.high}


def share(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None
