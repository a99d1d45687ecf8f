"""What prompts say, statement by statement, and which of it another picture makes false."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from rewardzoo.rewards._nouns import matched_phrases
from rewardzoo.rewards.blipvqa import MINI_CONFIG
from rewardzoo.trainers.lab.pair_batches import KINDS, Pairs
from rewardzoo.trainers.lab.prompts import parse_prompt
from rewardzoo.trainers.lab.scene import Scene
from rewardzoo.trainers.lab.seeing import ReadingProbe
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


class VerdictProbe(nn.Module):
    """Reads off a text encoder, where a statement of a prompt ends, whether it holds in the picture.

    So every statement teaches, and not only the one that makes a prompt false. Trained with the encoder, what
    `layer` puts out, and thrown away; `reading` finds the kinds in a text.
    """

    def __init__(self, width: int, reading: ReadingProbe, layer: nn.Module) -> None:
        super().__init__()
        self.entity = nn.Linear(width, 1)
        self.relation = nn.Linear(width, 1)
        self.mentions = reading.mentions
        layer.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        self._read = output[0] if isinstance(output, tuple) else output

    def loss(self, input_ids: Tensor, picture: Tensor, prompts: Sequence[str]) -> Tensor:
        """Loss of what was just read: tokens (B, L) of N prompts over and over, with the pictures (B,) shown.

        What is false counts twice: it is rarer.
        """
        scenes = [parse_prompt(prompt) for prompt in prompts]
        places: list[dict[int, list[int]]] = [{} for _ in input_ids]
        for row, place, kind in torch.stack(self.mentions(input_ids), 1).tolist():
            places[row].setdefault(kind, []).append(place)
        found = {"entity": list[tuple[int, int, bool]](), "relation": list[tuple[int, int, bool]]()}
        for row, shown in enumerate(picture.tolist()):
            asked = scenes[row % len(scenes)]
            named = [places[row][KINDS.index((entity.color, entity.shape))] for entity in asked.entities]
            holds = truths(asked, scenes[shown])
            found["entity"] += [(row, at[0], bool(true)) for at, true in zip(named, holds, strict=False)]
            related = zip(named[1:], holds[len(named) :], strict=True)
            found["relation"] += [(row, at[-1], true) for at, true in related if true is not None]
        losses = []
        for sort, statements in found.items():
            rows, ends, true = torch.tensor(statements).unbind(1)
            said = getattr(self, sort)(self._read[rows, ends].float())[:, 0].float()
            losses.append(F.binary_cross_entropy_with_logits(said, true.float(), 2.0 - true, reduction="sum"))
        return torch.stack(losses).sum() / sum(map(len, found.values()))
