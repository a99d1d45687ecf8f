"""ORM, the outcome reward model: a vision-language model says whether an image shows its prompt.

Papers: arXiv 2501.13926 (Image-Generation-CoT), arXiv 2505.00703 (T2I-R1). Sources of the recipes:
ZiyuGuo99/Image-Generation-CoT, `selector.py`; CaraJ7/T2I-R1, `src/t2i-r1/src/utils/reward_orm.py`.

Upstream samples an answer and scores the image 0 where its first token is neither yes nor no: the same image
gets another score each time. The recipe `orm/yes-no` reads the logits once instead and has P(yes) against
P(no). The sampled recipes have the number that upstream returns whenever its answer is accepted. It is no
more than what is left by `top_k` 20 and `top_p` 0.8 of the released `generation_config.json`: an answer that
holds 80% of the probability gets exactly 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rewardzoo.errors import ItemError
from rewardzoo.rewards._critic import (
    LLAVA_ONEVISION,
    PATTERNS,
    Critic,
    Question,
    alignment_question,
    imagegen_cot,
)
from rewardzoo.rewards._model import Batch, Outcome, Score
from rewardzoo.rewards._spec import HubFolder, PackagedFile, RewardSpec, Variant
from rewardzoo.rewards._vlm import MAX_BATCH_TOKENS, Turn
from rewardzoo.rewards._yesno import Sampler

PLAIN, _COT, _T2I_R1 = "orm/yes-no", "orm/imagegen-cot-sampled", "orm/t2i-r1-sampled"
_TEMPERATURES: Mapping[str, float] = {_COT: 1.0, _T2I_R1: 0.3}
_T2I_R1_FILES = {"checkpoint": HubFolder("CaraJ/ORM-T2I-R1", "main", PATTERNS)}
_COT_FILES = {"checkpoint": imagegen_cot("orm_ft")}
_BASE_FILES = {"checkpoint": LLAVA_ONEVISION}
_COT_CONFIG: Mapping[str, object] = {"folder": "orm_ft"}
_MINI_CONFIG: Mapping[str, object] = {"temperatures": {"selection": 1.715}}  # of its training's reward.json


class ORM(Critic):
    """P(yes) to "Does this image accurately represent the prompt?"."""

    spec = RewardSpec(
        name="orm",
        title="Outcome reward model",
        paper="arXiv:2501.13926",
        code_license="Apache-2.0 (T2I-R1, LLaVA-NeXT), unknown (Image-Generation-CoT)",
        score_range=(0.0, 1.0),
        variants=(
            Variant("llava-onevision-7b", PLAIN, _BASE_FILES, "Apache-2.0"),
            Variant("llava-onevision-7b-sampled", _COT, _BASE_FILES, "Apache-2.0", quirk=True),
            Variant("imagegen-cot", PLAIN, _COT_FILES, "unknown", _COT_CONFIG),
            Variant("imagegen-cot-sampled", _COT, _COT_FILES, "unknown", _COT_CONFIG, quirk=True),
            Variant("t2i-r1", PLAIN, _T2I_R1_FILES, "CC-BY-NC-4.0"),
            Variant("t2i-r1-sampled", _T2I_R1, _T2I_R1_FILES, "CC-BY-NC-4.0", quirk=True),
            Variant("mini", PLAIN, {"checkpoint": PackagedFile("minis/orm")}, "Apache-2.0", _MINI_CONFIG),
        ),
        max_batch=16,
        max_batch_cost=MAX_BATCH_TOKENS,
        gpu_dtype="bfloat16",
    )

    def prepare_prompt(self, prompt: str, metadata: Mapping[str, Any]) -> Question:
        """Ask upstream's question about the prompt."""
        return self.ask(Turn("user", alignment_question(prompt), image=True))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """P(yes), (B,) in [0, 1]; differentiable in the pixels.

        For a sampled recipe it is the number before `top_k` and `top_p` cut it, which only `evaluate` does:
        what is cut has no gradient worth the name.
        """
        logits = self.vlm.logits_at(inputs)[:, -1]
        if self._is_plain:
            return self.p_yes(logits, "selection")
        return self._sampled(logits, self._sampler.uncut)[0]

    def evaluate(self, batch: Batch) -> Sequence[Outcome]:
        """Scores with `p_yes` and `p_no` over the whole vocabulary, or `answered` for a sampled recipe.

        `answered` is the chance that upstream's sampled answer begins with an accepted token. Where it is 0,
        upstream returns 0, and so does this.
        """
        logits = self.vlm.logits_at(batch.inputs)[:, -1]
        if self._is_plain:
            scores = self.p_yes(logits, "selection").tolist()
            shares = logits.softmax(-1)[:, [self.yes, self.no]].tolist()
            return [Score(s, {"p_yes": yes, "p_no": no}) for s, (yes, no) in zip(scores, shares, strict=True)]
        values = (tensor.tolist() for tensor in self._sampled(logits, self._sampler))
        return [_judge(*value) for value in zip(*values, strict=True)]

    @property
    def _is_plain(self) -> bool:
        return self.variant.recipe == PLAIN

    @property
    def _sampler(self) -> Sampler:
        return self.sampler(_TEMPERATURES[self.variant.recipe])

    def _sampled(self, logits: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor, Tensor]:
        """Upstream's number, the chance of an accepted answer, and what the number was divided by."""
        shares = sampler.probabilities(logits)
        yes, no = shares[:, self.yes], shares[:, self.no]
        answered = shares[:, self.spelled_yes + self.spelled_no].sum(-1)
        if self.variant.recipe == _COT:
            return yes, answered, torch.ones_like(yes)
        both = yes + no
        return yes / both.clamp_min(torch.finfo(both.dtype).tiny), answered, both


def _judge(value: float, answered: float, divisor: float) -> Outcome:
    if answered > 0 and divisor == 0:
        return ItemError("only capitalised answers can be sampled: upstream divides by P(yes) + P(no) = 0")
    return Score(value, {"answered": answered})
