"""What prompts say, statement by statement, and which of it another picture makes false."""

from __future__ import annotations

from rewardzoo.rewards._nouns import matched_phrases
from rewardzoo.rewards.blipvqa import MINI_CONFIG
from rewardzoo.trainers.lab.pair_batches import Pairs
from rewardzoo.trainers.lab.prompts import parse_prompt
from rewardzoo.trainers.lab.scene import Scene
from rewardzoo.trainers.lab.training import pictures_to_judge


def truths(asked: Scene, shown: Scene) -> list[bool | None]:
    """Which of a scene's statements hold in another: its entities, then its relations.

    None where a relation is between kinds that are there in another number, or that are not neighbours in the
    other scene's chain.
    """
    kinds = {(entity.color, entity.shape): place for place, entity in enumerate(shown.entities)}
    found: list[bool | None] = [entity in shown.entities for entity in asked.entities]
    for k, relation in enumerate(asked.relations):
        one, other = (kinds.get((entity.color, entity.shape)) for entity in asked.entities[k : k + 2])
        if one is None or other is None:
            found.append(False)
        elif not (found[k] and found[k + 1]) or abs(one - other) != 1:
            found.append(None)
        else:
            there = shown.relations[min(one, other)]
            found.append(relation == (there if one < other else there.inverse))
    return found


def false_elsewhere(batch: Pairs, progress: float) -> list[tuple[int, int, str]]:
    """Return (own, other, phrase): a statement of a prompt, its own picture, and one in which it is false.

    The phrases are `blipvqa:mini`'s; the other picture is that of `pictures_to_judge`.
    """
    scenes = [parse_prompt(prompt) for prompt in batch.prompts]
    others = pictures_to_judge(len(scenes), progress)[len(scenes) :].tolist()
    found = []
    for own, (other, prompt) in enumerate(zip(others, batch.prompts, strict=True)):
        phrases = matched_phrases(prompt, MINI_CONFIG["phrases"])
        holds = truths(scenes[own], scenes[other])
        found += [(own, other, phrase) for phrase, true in zip(phrases, holds, strict=True) if true is False]
    return found
