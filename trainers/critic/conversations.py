"""A critic's questions and answers as LLaVA's conversations, read and written.

Sources of the words: those that serving asks with, `orm`, `parm` and `_reflection` of `rewardzoo.rewards`. In
what is read, blanks and line breaks may differ, and what follows the question's own sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rewardzoo.columns import check_text
from rewardzoo.rewards._critic import alignment_question
from rewardzoo.rewards._reflection import Reflection, reflection_question
from rewardzoo.rewards.parm import POTENTIAL_QUESTION, clarity_question
from rewardzoo.trainers.critic.records import Stage, answer_of

_IMAGE = "<image>"
_FINISHED = re.compile(
    r"This\s+image\s+is\s+generated\s+by\s+(?:a\s+)?prompt:?\s+(?P<prompt>.+?)\.?\s+"
    r"Does\s+this\s+image\s+accurately\s+represent\s+the\s+prompt\?(?P<rest>.*)",
    re.DOTALL,
)
_CLARITY = re.compile(
    r"image\s+is\s+generated\s+by\s+(?:a\s+)?prompt:?\s+'(?P<prompt>.+?)\.?'\s*"
    r"Do\s+you\s+think\s+this\s+image\s+can\s+be\s+used\s+to\s+judge",
    re.DOTALL,
)
_POTENTIAL = re.compile(r"has\s+the\s+potential\s+to\s+iterate")
_WITH_REASON = re.compile(r"If\s+no,\s+say")
_YES_OR_NO = re.compile(r"\s*(yes|no)[\s.]*", re.IGNORECASE)


def dialogue(stage: Stage, prompt: str) -> list[str]:
    """What is said of a picture before the answer that is learned: a question, or two and a yes."""
    if stage == "selection":
        return [alignment_question(prompt)]
    if stage == "reflection":
        return [reflection_question(prompt)]
    asked = clarity_question(prompt)
    return [asked] if stage == "clarity" else [asked, "yes", POTENTIAL_QUESTION]


def write_conversation(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Write the turns of a row, whose columns are those of `Record`."""
    turns = [*dialogue(row["stage"], row["prompt"]), answer_of(row["stage"], row["label"], row["reason"])]
    return [
        {"from": "gpt" if k % 2 else "human", "value": text if k else f"{_IMAGE}\n{text.lstrip()}"}
        for k, text in enumerate(turns)
    ]


def read_conversation(said: object) -> tuple[Stage, str, bool, str]:
    """Return what is asked, about which prompt, and the answer: yes or no, and the reason.

    Raises:
        ValueError: it is none of a critic's dialogues; the message says what was expected.
    """
    turns = _turns(said)
    first, answer = turns[0], turns[-1]
    clear, finished = _CLARITY.search(first), _FINISHED.search(first)
    if len(turns) == 4:
        if clear is None or not _POTENTIAL.search(turns[2]) or not _verdict(turns[1]):
            raise ValueError(
                f"two questions must be parm's, clarity, answered with yes, and potential: {turns!r:.300}"
            )
        return "potential", clear["prompt"], _verdict(answer), ""
    if clear:
        return "clarity", clear["prompt"], _verdict(answer), ""
    if finished is None:
        known = " or ".join(
            repr(" ".join(dialogue(s, "PROMPT")[0].split())) for s in ("selection", "clarity")
        )
        raise ValueError(f"the question is none of orm's and parm's: {first!r:.300}; expected {known}")
    if _WITH_REASON.search(finished["rest"]):
        found = Reflection.read(answer)
        return "reflection", finished["prompt"], found.verdict, found.reason
    return "selection", finished["prompt"], _verdict(answer), ""


def _turns(said: object) -> Sequence[str]:
    """What human and gpt say in turns, without the mark of the picture."""
    if not isinstance(said, list) or not all(isinstance(turn, dict) for turn in said):
        raise ValueError(f"conversations must be a list of turns, got {said!r:.60}")
    order = [turn.get("from") for turn in said]
    if order not in (["human", "gpt"], ["human", "gpt"] * 2):
        raise ValueError(f"expected one or two turns each of human and gpt, got {', '.join(map(str, order))}")
    for turn in said:
        check_text(turn, ["value"])
    return [turn["value"].replace(_IMAGE, "").strip() for turn in said]


def _verdict(answer: str) -> bool:
    found = _YES_OR_NO.fullmatch(answer)
    if found is None:
        raise ValueError(f"expected the answer yes or no, got {answer!r:.60}")
    return found[1].lower() == "yes"
