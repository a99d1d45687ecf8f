"""From hidden states and logits to tokens, log-probabilities and entropies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rewardzoo.trainers.policies.policy import TokenLogprobs

LOGITS_AT_ONCE = 2**24
"""How many float32 logits are made at a time: 64 MiB, or one image's, and a few times that at work."""


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw a token a row by inverting the cumulated probabilities.

    `logits` float32 (B, V), `uniforms` float64 (B,) in [0, 1). Returns int64 (B,). A token of probability 0
    is never drawn.
    """
    cumulated = logits.softmax(-1).double().cumsum(-1)
    total = cumulated[:, -1:]
    # Below the total even where the product rounds up to it: past the total there is no token.
    threshold = torch.minimum(uniforms[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulated, threshold, right=True)[:, 0]


def guide(conditional: Tensor, unconditional: Tensor | None, scale: float) -> Tensor:
    """Classifier-free guidance u + w (c - u) of logits; c itself where there is no unconditional pass."""
    if unconditional is None:
        return conditional
    return unconditional + scale * (conditional - unconditional)


def score_tokens(
    head: Callable[[Tensor], Tensor],
    conditional: Tensor,
    unconditional: Tensor | None,
    tokens: Tensor,
    *,
    codes: int,
    scale: float = 1.0,
    temperature: float = 1.0,
    detach_unconditional: bool = False,
) -> TokenLogprobs:
    """Log-probability and entropy of image tokens, from the hidden states that predict them.

    `conditional` and `unconditional` are (B, N, D), `tokens` int64 (B, N); `head` turns states into logits
    over `codes` codes. Logits are made for a few images at a time, and made anew in the backward pass rather
    than kept: those of one image of Janus-Pro are 37 MB in float32, several times over.
    """

    def score(states: Tensor, blank: Tensor | None, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states).float()
        if blank is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not detach_unconditional):
                blank_logits = head(blank).float()
            logits = guide(logits, blank_logits, scale)
        logprobs = (logits / temperature).log_softmax(-1)
        return logprobs.gather(-1, ids[..., None])[..., 0], -(logprobs.exp() * logprobs).sum(-1)

    images = max(1, LOGITS_AT_ONCE // (tokens.shape[1] * codes))
    states, ids = torch.split(conditional, images), torch.split(tokens, images)
    blanks: Sequence[Tensor | None] = [None] * len(ids)
    if unconditional is not None:
        blanks = torch.split(unconditional, images)
    recompute = torch.is_grad_enabled() and len(ids) > 1
    parts = [
        checkpoint(score, *part, use_reentrant=False, preserve_rng_state=False) if recompute else score(*part)
        for part in zip(states, blanks, ids, strict=True)
    ]
    return TokenLogprobs(*(torch.cat(column) for column in zip(*parts, strict=True)))
