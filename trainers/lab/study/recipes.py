"""The mini rewards that a study compares, and how each was trained; docs/lab.md has the rest."""

from __future__ import annotations

from collections.abc import Mapping

from rewardzoo.rewards import specs

_RENDERED = "rendered pictures of in-domain prompts"
_GENERATED = "pictures that the generator made of in-domain prompts"
RECIPES: Mapping[str, str] = {
    "imagereward:mini": f"learned to rank two pictures under a prompt, from {_RENDERED}",
    "hpsv2:mini": f"learned by contrast and then preferences, from {_RENDERED}",
    "blipvqa:mini": f"learned to answer questions on objects and relations, from {_RENDERED}",
    "hpsv3:mini": f"learned to rank two pictures under a prompt, with a language model, from {_RENDERED}",
    "clipscore:mini": f"learned by contrast, from {_RENDERED}",
    "vqascore:mini": f"learned to answer whether a picture shows its prompt, from {_RENDERED}",
    "pickscore:mini": f"learned preferences, beginning at clipscore:mini, from {_RENDERED}",
    "orm:mini": f"learned to answer whether a picture shows its prompt, from {_GENERATED}",
}
"""In words, by reward, in the order in which they are chosen."""
_MOST_GENERATED = 2
_MOST = 5


def shipped() -> set[str]:
    """Return the names of all mini rewards that this package has."""
    return {f"{spec.name}:{v.name}" for spec in specs() for v in spec.variants if v.is_mini}


def default_rewards() -> tuple[str, ...]:
    """Choose five that differ in how they were trained, as far as such are shipped.

    Up to two of them learned from the generator's pictures, the others from rendered ones. Of fewer than
    five no order is significant.
    """
    there = [name for name in RECIPES if name in shipped()]
    generated = [name for name in there if _GENERATED in RECIPES[name]][:_MOST_GENERATED]
    rendered = [name for name in there if _RENDERED in RECIPES[name]]
    return (*rendered[: _MOST - len(generated)], *generated)


def recipe_of(reward: str) -> str:
    """Say how a reward was trained; of one that is not the lab's, nothing is known here."""
    return RECIPES.get(reward, "not one of the lab's: see its card")
