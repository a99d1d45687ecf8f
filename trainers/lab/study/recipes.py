"""The mini rewards that a study compares, and how each was trained; docs/lab.md has the rest."""

from __future__ import annotations

from collections.abc import Mapping

from rewardzoo.rewards import specs

RECIPES: Mapping[str, str] = {
    "imagereward:mini": "ranks two pictures under a prompt; rendered in-domain pairs",
    "hpsv2:mini": "contrast of pictures and prompts, then preferences; rendered in-domain pairs",
    "blipvqa:mini": "answers questions about objects and relations; rendered in-domain pairs",
    "clipscore:mini": "contrast of pictures and prompts; rendered in-domain pairs",
    "pickscore:mini": "preferences, from clipscore:mini on; rendered in-domain pairs",
    "orm:mini": "learns whether a picture shows its prompt; the generator's own pictures",
    "hpsv3:mini": "preferences; the generator's own pictures",
    "vqascore:mini": "learns whether a picture shows its prompt; the generator's own pictures",
}
"""In words, by reward, in the order in which they are chosen."""
_OF_A_KIND = 2
_MOST = 4
_GENERATED = "the generator's own pictures"


def shipped() -> set[str]:
    """Return the names of all mini rewards that this package has."""
    return {f"{spec.name}:{v.name}" for spec in specs() for v in spec.variants if v.is_mini}


def default_rewards() -> tuple[str, ...]:
    """Choose four that differ in how they were trained, as far as such are shipped.

    Half of them learned from the generator's own pictures, half from rendered ones.
    """
    there = [name for name in RECIPES if name in shipped()]
    generated = [name for name in there if _GENERATED in RECIPES[name]][:_OF_A_KIND]
    rendered = [name for name in there if name not in generated and _GENERATED not in RECIPES[name]]
    return (*rendered[: _MOST - len(generated)], *generated)


def recipe_of(reward: str) -> str:
    """Say how a reward was trained; of one that is not the lab's, nothing is known here."""
    return RECIPES.get(reward, "not one of the lab's: see its card")
