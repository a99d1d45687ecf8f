"""The base policy's candidates: sampled once, scored by every reward, and searched among by PARM."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rewardzoo.clients.compare.best_of_n import expected_picks
from rewardzoo.clients.compare.data import find_data, join_pools
from rewardzoo.clients.compare.scoring import score_all
from rewardzoo.clients.compare.search_saving import search_point
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.clients.compare.store import ScoreStore
from rewardzoo.clients.compare.study import SearchPoint
from rewardzoo.clients.compare.tables import by_prompt, codes
from rewardzoo.local import LocalRewards
from rewardzoo.trainers.config import load_config
from rewardzoo.trainers.critic.config import CriticConfig
from rewardzoo.trainers.lab.exact_reward import ExactReward
from rewardzoo.trainers.lab.preferences import write_pool
from rewardzoo.trainers.lab.study.settings import JUDGE, SPLITS, Place
from rewardzoo.trainers.lab.verdict import judge
from rewardzoo.trainers.policies import JanusPolicy
from rewardzoo.trainers.policies.loading import load_policy
from rewardzoo.trainers.prompts import Prompt, load_prompts
from rewardzoo.trainers.rollout import draw
from rewardzoo.trainers.search import parm_search

PARM, ORM = "parm:mini", "orm:mini"
POOL = "pool"
_FEWEST_PATHS = 4
_AT_ONCE = 512


def sample_pool(place: Place, split: str) -> Path:
    """Sample the candidates of a split as the runs sample, without guidance, and write them as a pool."""
    policy = load_policy(place.grpo.policy)
    return write_pool(place.pool / split, _candidates(place, policy, split))


def score_pool(place: Place, rewards: Sequence[str]) -> None:
    """Score all candidates by rewards and by the judge; what was scored before is not scored again."""
    store = pool_store(place)
    with closing(LocalRewards.of([ExactReward(JUDGE)])) as exact:
        score_all(store, exact, [JUDGE])
    with closing(LocalRewards(rewards, device="cpu")) as scorer:
        score_all(store, scorer, rewards)


def pool_store(place: Place) -> ScoreStore:
    """Open the candidates of both splits as one store."""
    pools = {split: find_data(str(place.pool / split / "pool.jsonl"), "pool") for split in SPLITS}
    return join_pools(pools).store(place.folder, POOL)


def spreads(store: ScoreStore, rewards: Sequence[str]) -> dict[str, float]:
    """Return each reward's standard deviation between candidates of one prompt, mean over prompts."""
    prompts, _ = codes(store.items(["prompt_id"])["prompt_id"])
    found = {}
    for reward in rewards:
        scores = store.scores(reward).astype(float)
        of_prompts = [scores[rows].std() for rows in by_prompt(prompts, ~np.isnan(scores))]
        found[reward] = float(np.mean(of_prompts)) if of_prompts else float("nan")
    return found


def search_pool(place: Place, split: str) -> Path:
    """Search by PARM among the very paths whose finished pictures are the pool's; write what it came to.

    A line each n has `right` by prompt, as the judge says of the chosen pictures, and `drawn`, in images.
    """
    policy = load_policy(place.grpo.policy)
    tokens = policy.tokens_per_image
    steps = sorted({min(max(1, round(share * tokens)), tokens - 1) for share in judged_at()})
    lines = []
    with closing(LocalRewards([PARM], device="cpu")) as scorer:
        for n in _paths(place.settings.pool_size):
            right: list[float] = []
            drawn: list[float] = []
            for seed, prompts in _batches(place, split):
                found = parm_search(
                    policy,
                    prompts,
                    scorer,
                    PARM,
                    n,
                    steps=steps,
                    sampling=place.grpo.sampling.sampling(),
                    seed=seed,
                    threshold=place.settings.give_up_below,
                )
                chosen = zip(found.images, prompts, strict=True)
                right += [float(judge(image, prompt.text).correct) for image, prompt in chosen]
                drawn += (found.drawn.sum(1) / tokens).tolist()
            lines.append(json.dumps({"n": n, "right": right, "drawn": drawn}) + "\n")
    path = _found(place, split)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(lines))
    return path


def judged_at() -> Sequence[float]:
    """Return at which shares of a picture's tokens PARM learned to judge it."""
    return load_config(CriticConfig, "lab_parm").data.steps


def search_points(place: Place, bootstrap: Bootstrap) -> Iterator[SearchPoint]:
    """Compare the searches with the best of n by ORM, on the same prompts and paths."""
    store = pool_store(place)
    table = store.items(["prompt_id", "split"])
    prompts, _ = codes(table["prompt_id"])
    splits, names = codes(table["split"])
    scores, judged = (store.scores(name).astype(float) for name in (ORM, JUDGE))
    for split in SPLITS:
        # The rows of a pool are in the order of its prompts.
        pools = by_prompt(prompts, splits == names.index(split))
        worth = np.stack([expected_picks(scores[rows], judged[rows]) for rows in pools])
        for line in _found(place, split).read_text().splitlines():
            found = json.loads(line)
            yield search_point(
                split, found["n"], np.array(found["right"]), np.array(found["drawn"]), worth, bootstrap
            )


def _candidates(
    place: Place, policy: JanusPolicy, split: str
) -> Iterator[tuple[str, Sequence[NDArray[np.uint8]]]]:
    size, sampling = place.settings.pool_size, place.grpo.sampling.sampling()
    for seed, prompts in _batches(place, split):
        places = [(prompt, path) for prompt in range(len(prompts)) for path in range(size)]
        uniforms = draw((seed,), places, policy.tokens_per_image)
        batch = policy.encode([prompt.text for prompt in prompts]).repeat_interleave(size)
        with torch.no_grad():
            images = policy.decode(policy.sample(batch, torch.from_numpy(uniforms), sampling).tokens)
        for at, prompt in enumerate(prompts):
            yield prompt.text, list(images[at * size : (at + 1) * size])


def _batches(place: Place, split: str) -> Iterator[tuple[int, list[Prompt]]]:
    """Yield the pool's prompts, some at once, with a seed each: pool and search draw the same paths."""
    section = place.grpo.evaluation.sets[split]
    prompts = load_prompts(section.model_copy(update={"count": place.settings.pool_prompts}))
    at_once = max(1, _AT_ONCE // place.settings.pool_size)
    for start in range(0, len(prompts), at_once):
        yield start, prompts[start : start + at_once]


def _paths(most: int) -> list[int]:
    """Return 4, 8 and so on up to `most`."""
    found = [_FEWEST_PATHS]
    while found[-1] * 2 <= most:
        found.append(found[-1] * 2)
    return [n for n in found if n <= most] or [most]


def _found(place: Place, split: str) -> Path:
    return place.folder / "search" / f"{split}.jsonl"
