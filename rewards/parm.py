"""PARM, the potential assessment reward model: will an unfinished image end as its prompt says?

Paper: arXiv 2501.13926. Source of the recipe: ZiyuGuo99/Image-Generation-CoT, `selector.py` and `parm.py`.

An item's `metadata["stage"]` says what is asked about its image:
- "potential", the default: first whether the image, a step of the generation, is clear enough to judge; then,
  that being answered with yes, whether it has the potential to end well. An image that is not clear scores 0:
  upstream gives it no potential and P(no) = 1. `metadata["clear"]` = true says that an earlier step of the
  same image was clear already: upstream does not ask again.
- "selection": the outcome reward model's question, by which upstream picks among the finished images that
  had potential.
- "reflection": a verdict with a reason, in the form of PARM++ (`_reflection.py`).

Upstream's search assesses a path step by step until a step is clear and keeps that step's potential; among
paths with potential it takes the one with the best selection score, or else the one with the best potential.
The clarity is read in the middle of the same forward pass as the potential: the second dialogue begins with
the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rewardzoo.errors import ItemError
from rewardzoo.rewards._critic import Critic, Question, alignment_question, imagegen_cot
from rewardzoo.rewards._model import Batch, Outcome, Picture, Score
from rewardzoo.rewards._reflection import Reflection, from_details, reflection_question
from rewardzoo.rewards._spec import PackagedFile, RewardSpec, Variant
from rewardzoo.rewards._vlm import MAX_BATCH_TOKENS, Turn
from rewardzoo.rewards._yesno import Sampler

PLAIN, _SAMPLED = "parm/yes-no", "parm/imagegen-cot-sampled"
_FILES = {"checkpoint": imagegen_cot("parm")}
_CONFIG: Mapping[str, object] = {"folder": "parm"}
_MINI_CONFIG: Mapping[str, object] = {  # of its training's reward.json
    "temperatures": {"clarity": 1.075, "potential": 1.887, "selection": 1.851}
}
_STAGES = ("potential", "selection", "reflection")
_REASON_TOKENS = 128


class PARM(Critic):
    """P(yes) to "has the image the potential?", 0 while the image is not clear."""

    spec = RewardSpec(
        name="parm",
        title="Potential assessment reward model",
        paper="arXiv:2501.13926",
        code_license="unknown (Image-Generation-CoT), Apache-2.0 (LLaVA-NeXT)",
        score_range=(0.0, 1.0),
        variants=(
            Variant("imagegen-cot", PLAIN, _FILES, "unknown", _CONFIG),
            Variant("imagegen-cot-sampled", _SAMPLED, _FILES, "unknown", _CONFIG, quirk=True),
            Variant("mini", PLAIN, {"checkpoint": PackagedFile("minis/parm")}, "Apache-2.0", _MINI_CONFIG),
        ),
        max_batch=16,
        max_batch_cost=MAX_BATCH_TOKENS,
        gpu_dtype="bfloat16",
    )

    def prepare_prompt(self, prompt: str, metadata: Mapping[str, Any]) -> Question:
        """Write the dialogue of the item's stage.

        Raises:
            ItemError: the stage is not known, or `clear` is not a truth value.
        """
        stage, clear = metadata.get("stage", _STAGES[0]), metadata.get("clear", False)
        if stage not in _STAGES:
            raise ItemError(f"metadata['stage'] is {stage!r}: there are {', '.join(_STAGES)}")
        if not isinstance(clear, bool):
            raise ItemError(f"metadata['clear'] is {clear!r}: it says true or false")
        if stage == "selection":
            return self.ask(Turn("user", alignment_question(prompt), image=True), about=stage)
        if stage == "reflection":
            return self.ask(Turn("user", reflection_question(prompt), image=True), about=stage)
        return self.ask(
            Turn("user", clarity_question(prompt), image=True),
            Turn("assistant", "yes"),
            Turn("user", POTENTIAL_QUESTION),
            about="clear" if clear else stage,
        )

    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Question]
    ) -> dict[str, Tensor]:
        """Make the critic's batch; `gated` (B,) says whose score depends on the image's clarity."""
        gated = torch.tensor([question.about == "potential" for question in asked])
        selected = torch.tensor([question.about == "selection" for question in asked])
        return {**super().collate(images, image_index, asked), "gated": gated, "selected": selected}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Scores (B,) in [0, 1]; differentiable in the pixels of images that are clear.

        For the sampled recipe they are the scores before `top_k` and `top_p` cut them, as in `orm`.
        """
        return self._judge(inputs, self.sampler(1.0).uncut)["score"]

    def evaluate(self, batch: Batch) -> Sequence[Outcome]:
        """Scores with the numbers they are made of; reflections are written here, greedily."""
        judged = {
            name: tensor.tolist() for name, tensor in self._judge(batch.inputs, self.sampler(1.0)).items()
        }
        outcomes: list[Outcome] = []
        for i, question in enumerate(batch.asked):
            names = _NAMES[self.variant.recipe, question.about in ("potential", "clear")]
            details = {name: judged[key][i] for name, key in names.items()}
            if not judged["clear"][i]:
                details.pop("answered", None)
            outcomes.append(Score(judged["score"][i], details))
        rows = [i for i, question in enumerate(batch.asked) if question.about == "reflection"]
        for i, outcome in zip(rows, self._reflections(batch.inputs, rows), strict=True):
            outcomes[i] = (
                outcome if isinstance(outcome, ItemError) else Score(judged["score"][i], outcome.details())
            )
        return outcomes

    def reflect(self, images: Sequence[Picture], prompts: Sequence[str]) -> list[Reflection | ItemError]:
        """Judge N finished images in words: a verdict and a reason each, or that item's error."""
        outcomes = self.score_items(images, prompts, [{"stage": "reflection"}] * len(images))
        return [o if isinstance(o, ItemError) else from_details(o.details) for o in outcomes]

    def _judge(self, inputs: Mapping[str, Tensor], sampler: Sampler) -> dict[str, Tensor]:
        logits = self.vlm.logits_at(inputs)
        first, last = logits[:, 0], logits[:, -1]
        if self.variant.recipe == PLAIN:
            clarity = self.p_yes(first, "clarity")
            clear = (clarity >= 0.5) | ~inputs["gated"]
            potential = torch.where(
                inputs["selected"], self.p_yes(last, "selection"), self.p_yes(last, "potential")
            )
            score = torch.where(clear, potential, torch.zeros_like(potential))
            return {"score": score, "clear": clear, "clarity": clarity, "potential": potential}
        shares = sampler.probabilities(logits)
        unclear = shares[:, 0][:, self.spelled_no].sum(-1)
        clear = (unclear <= 0.5) | ~inputs["gated"]
        answered = shares[:, -1][:, self.spelled_yes + self.spelled_no].sum(-1)
        yes, no = shares[:, -1, self.yes], shares[:, -1, self.no]
        given = torch.where(inputs["selected"], yes, 1 - no)
        score = torch.where(clear & (answered > 0), given, torch.zeros_like(no))
        return {"score": score, "clear": clear, "unclear": unclear, "answered": answered}

    def _reflections(self, inputs: Mapping[str, Tensor], rows: list[int]) -> list[Reflection | ItemError]:
        if not rows:
            return []
        found: list[Reflection | ItemError] = []
        for answer in self.vlm.generate(inputs, _REASON_TOKENS):
            try:
                found.append(Reflection.read(answer))
            except ItemError as error:
                found.append(error)
        return [found[i] for i in rows]


_NAMES: Mapping[tuple[str, bool], Mapping[str, str]] = {  # details by recipe and whether potential is asked
    (PLAIN, True): {"clarity": "clarity", "potential": "potential", "clear": "clear"},
    (PLAIN, False): {"selection": "potential"},
    (_SAMPLED, True): {"unclear": "unclear", "clear": "clear", "answered": "answered"},
    (_SAMPLED, False): {"selection": "score", "answered": "answered"},
}


def clarity_question(prompt: str) -> str:
    """Upstream's first question; PARM is trained on these very words, spaces and line breaks."""
    return (
        " \n The above image is a certain step  in the text to image generation process. This image is not"
        " the final generated one, and will keep iterating better. The image is generated by prompt"
        f" '{prompt}.'\n        Do you think this image can be used to judge whether it has the potential"
        " to iterate to the image satisfied the prompt?(The image, which needn't to be confused  but can be"
        " clear and basically judged the object, can be used to judge the potential)\n        Answer yes or"
        " no with no explanation.(yes or no in lowercase and no full point)"
    )


POTENTIAL_QUESTION = (
    "Do you think whether the image has the potential to iterate to the image satisfied the prompt? Please"
    " answer yes or no with no explanation.(yes or no in lowercase and no full point)"
)
"""Upstream's second question, behind its own yes to the first."""
