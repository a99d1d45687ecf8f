"""Probabilities of an answer, from the logits of its first token.

Shared by rewards that ask a vision-language model a yes-or-no question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewardzoo.errors import WeightsError


def yes_or_no(logits: Tensor, yes: int, no: int) -> Tensor:
    """P(yes) where yes and no are the only answers: logits (…, V) -> (…) in [0, 1]."""
    return torch.sigmoid(logits[..., yes] - logits[..., no])


@dataclass(frozen=True)
class Sampler:
    """How `transformers` warps logits before it samples. `top_k` 0 and `top_p` 1 do nothing."""

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0

    @property
    def uncut(self) -> Sampler:
        """The same temperature, and every token can be drawn."""
        return Sampler(self.temperature, 0, 1.0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What a token is sampled from: (…, V) -> (…, V), exact zeros where it cannot be drawn.

        Source: `transformers`, `TemperatureLogitsWarper`, `TopKLogitsWarper` and `TopPLogitsWarper`, in that
        order.
        """
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            ascending, order = logits.sort(-1)
            tail = ascending.softmax(-1).cumsum(-1) <= 1 - self.top_p
            tail[..., -1] = False
            logits = logits.masked_fill(tail.scatter(-1, order, tail), -torch.inf)
        return logits.softmax(-1)


def token_of(tokenizer: Any, word: str) -> int:
    """The id of the one token that `word` is.

    Raises:
        WeightsError: the tokenizer has no such token.
    """
    ids: list[int] = tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1:
        raise WeightsError(f"the tokenizer must have {word!r} as one token, it makes {len(ids)} of it")
    return ids[0]


def spellings(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Ids of the tokens that are one of `words` in lower case: "yes", "Yes" and "YES", but not " yes"."""
    tokens: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [i for i, token in enumerate(tokens) if token.lower() in words]
