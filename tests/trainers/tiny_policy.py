"""A policy of a few hundred weights that follows the protocol, for tests of what is around one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from rewardzoo.trainers.policies.policy import Drawing, PromptBatch, Rollout, Sampling, TokenLogprobs

COLORS = np.array(
    [[220, 40, 40], [40, 180, 60], [50, 80, 220], [230, 210, 50], [240, 240, 240], [20, 20, 20]], np.uint8
)


class TinyPolicy(nn.Module):
    """Each of N tokens is a colour of a square, drawn given the prompt, its place and the token before."""

    def __init__(self, tokens_per_image: int = 16, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tokens_per_image = tokens_per_image
        self.words = nn.Embedding(257, width)
        self.places = nn.Embedding(tokens_per_image, width)
        self.before = nn.Embedding(len(COLORS) + 1, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, len(COLORS))

    def encode(self, prompts: Sequence[str]) -> PromptBatch:
        raw = [list(prompt.encode()) for prompt in prompts]
        longest = max(map(len, raw))
        ids = torch.tensor([[256] * (longest - len(r)) + r for r in raw])
        return PromptBatch(ids, (ids != 256).long())

    def unconditional(self, prompts: PromptBatch, rows: Tensor | None = None) -> PromptBatch:
        rows = torch.ones(len(prompts), dtype=torch.bool) if rows is None else rows
        return PromptBatch(
            torch.where(rows[:, None], 256, prompts.input_ids), prompts.attention_mask * ~rows[:, None]
        )

    def sample(self, prompts: PromptBatch, uniforms: Tensor, sampling: Sampling) -> Rollout:
        tokens = torch.zeros(len(prompts), 0, dtype=torch.long)
        for n in range(self.tokens_per_image):
            padded = torch.cat([tokens, tokens.new_zeros(len(prompts), 1)], 1)
            cdf = self._logits(prompts, padded)[:, n].double().softmax(-1).cumsum(-1)
            drawn = (cdf <= uniforms[:, n : n + 1]).sum(-1, keepdim=True).clamp(max=len(COLORS) - 1)
            tokens = torch.cat([tokens, drawn], 1)
        return Rollout(tokens, self._chosen(self._logits(prompts, tokens), tokens))

    def begin(self, prompts: PromptBatch, uniforms: Tensor, sampling: Sampling) -> Drawing:
        return _Revealed(self.sample(prompts, uniforms, sampling))

    def forward(self, prompts: PromptBatch, tokens: Tensor, sampling: Sampling) -> TokenLogprobs:
        logits = self._logits(prompts, tokens)
        probs = logits.softmax(-1)
        return TokenLogprobs(self._chosen(logits, tokens), -(probs * logits.log_softmax(-1)).sum(-1))

    def decode(self, tokens: Tensor) -> NDArray[np.uint8]:
        side = int(self.tokens_per_image**0.5)
        small = COLORS[tokens.cpu().numpy()].reshape(-1, side, side, 3)
        return small.repeat(8, axis=1).repeat(8, axis=2)

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        side = int(self.tokens_per_image**0.5)
        small = np.stack([np.asarray(i.resize((side, side), Image.Resampling.NEAREST)) for i in images])
        distance = np.abs(small[..., None, :].astype(int) - COLORS).sum(-1)  # (B, H, W, colours)
        return torch.from_numpy(distance.argmin(-1)).flatten(1)

    def reference(self) -> nn.Module:
        return deepcopy(self).requires_grad_(False)

    def save(self, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(dict(state_dict or self.state_dict()), Path(folder) / "weights.pt")

    def _logits(self, prompts: PromptBatch, tokens: Tensor) -> Tensor:
        mask = prompts.attention_mask[..., None]
        text = (self.words(prompts.input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1)  # (B, W)
        start = torch.full_like(tokens[:, :1], len(COLORS))
        before = self.before(torch.cat([start, tokens[:, :-1]], 1))  # (B, n, W)
        places = self.places.weight[: tokens.shape[1]]
        return self.head(torch.tanh(self.mix(text[:, None] + before + places)))

    def _chosen(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


class _Revealed:
    """A drawing that was done at once, and is shown little by little."""

    def __init__(self, whole: Rollout) -> None:
        self._whole, self._count = whole, 0

    @property
    def tokens(self) -> Tensor:
        return self._whole.tokens[:, : self._count]

    def advance(self, count: int) -> None:
        self._count = count

    def keep(self, rows: Tensor) -> None:
        self._whole = Rollout(self._whole.tokens[rows], self._whole.logprobs[rows])
