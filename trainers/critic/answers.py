"""Teaching a vision-language model to answer: the loss on its answers' tokens alone.

Questions are asked by the critic's own code, `prepare_prompt` and `collate`, which serving calls too: what a
critic is trained on is what it will be asked, to the last blank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rewardzoo.rewards._critic import Critic, Question
from rewardzoo.trainers.critic.records import answer_of

NOTHING = -100
"""A target that counts for nothing, in `F.cross_entropy`'s words."""


def collate(critic: Critic, images: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Make the critic's batch of B rows about their prepared images, with what it should answer.

    Besides the critic's own tensors, of which `read` (B, R) says where answers begin: `targets` (B, R), the
    token that belongs there, and `yes` (B,), the chance that the last one is yes, NaN where it is no such
    answer.
    """
    asked, answers = [], []
    for row in rows:
        question, targets = _with_answer(critic, row)
        asked.append(question)
        answers.append(targets)
    inputs = critic.collate(images, range(len(rows)), asked)
    wide = inputs["read"].shape[1]
    padded = [[NOTHING] * (wide - len(targets)) + targets for targets in answers]
    yes = [row["label"] if row["stage"] in ("selection", "potential") else float("nan") for row in rows]
    return {**inputs, "targets": torch.tensor(padded), "yes": torch.tensor(yes, dtype=torch.float32)}


def answer_loss(critic: Critic, inputs: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy of the answers' tokens, (B,): of each row, the mean over its tokens.

    A label between 0 and 1 is learned as it is: that chance of yes, the rest of no.
    """
    logprobs = critic.vlm.logits_at(inputs).log_softmax(-1)
    targets, yes = inputs["targets"], inputs["yes"].to(logprobs.dtype)
    counted = targets != NOTHING
    losses = -logprobs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    last, chance = logprobs[:, -1], yes.nan_to_num()  # a NaN would reach the gradient
    soft = -(chance * last[:, critic.yes] + (1 - chance) * last[:, critic.no])
    losses = torch.cat([losses[:, :-1], torch.where(yes.isnan(), losses[:, -1], soft)[:, None]], 1)
    return (losses * counted).sum(1) / counted.sum(1)


def log_odds(critic: Critic, inputs: Mapping[str, Tensor]) -> Tensor:
    """Log-odds of yes against no (B,) where the label of each row is, which serving turns into its score.

    A reflection's are those of its first word.
    """
    logits = critic.vlm.logits_at(inputs)
    first = (inputs["targets"] != NOTHING).int().argmax(1)  # where a row's answers begin
    rows = torch.arange(len(logits), device=logits.device)
    last = torch.full_like(first, logits.shape[1] - 1)
    at = torch.where(inputs["yes"].isnan(), first, last)
    answered = logits[rows, at]
    return answered[:, critic.yes] - answered[:, critic.no]


def _with_answer(critic: Critic, row: Mapping[str, Any]) -> tuple[Question, list[int]]:
    stage = row["stage"]
    asked = "potential" if stage == "clarity" else stage
    question = critic.prepare_prompt(row["prompt"], {"stage": asked, "clear": stage == "potential"})
    answer = answer_of(stage, row["label"], row["reason"])
    if stage == "reflection":
        return _in_words(critic, question, answer)
    word = critic.yes if answer == "yes" else critic.no
    if stage == "clarity":  # answered in the middle of the dialogue, whose end is not read
        return question, [word, *[NOTHING] * len(question.earlier)]
    return question, [*[critic.yes] * len(question.earlier), word]


def _in_words(critic: Critic, question: Question, answer: str) -> tuple[Question, list[int]]:
    encode = critic.vlm.encode
    chat = question.chat + answer
    words = encode(chat)[len(encode(question.chat)) :] + encode("<|im_end|>")
    return replace(question, chat=chat, earlier=tuple(range(len(words) - 1, 0, -1))), words
