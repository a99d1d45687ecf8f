"""The protocol of an autoregressive image generator that can be trained on rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

LogpMode = Literal["cond", "cfg", "cfg_detach_uncond"]
"""Whose probabilities are trained, with guided logits g = u + w (c - u) of conditional c, unconditional u:

- `cond`: softmax(c), at temperature 1. Half the cost; off-policy wherever w or the temperature is not 1.
- `cfg`: softmax(g / temperature), what was sampled from, with gradients through both.
- `cfg_detach_uncond`: the same value, with gradients through c alone.
"""


@dataclass(frozen=True)
class Sampling:
    """How images are sampled, and under which probabilities the policy learns from them."""

    guidance_scale: float = 5.0
    temperature: float = 1.0
    logp_mode: LogpMode = "cond"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        if not self.guidance_scale >= 0:
            raise ValueError(f"guidance_scale must be >= 0 (1 is none), got {self.guidance_scale}")


@dataclass(frozen=True)
class PromptBatch:
    """B tokenised prompts, padded on the left: `input_ids` and `attention_mask`, both int64 (B, L)."""

    input_ids: Tensor
    attention_mask: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: slice | Tensor) -> PromptBatch:
        return PromptBatch(self.input_ids[rows], self.attention_mask[rows])

    def repeat_interleave(self, times: int) -> PromptBatch:
        """Each prompt `times` times in a row: (B * times, L), groups kept together."""
        return PromptBatch(
            self.input_ids.repeat_interleave(times, 0), self.attention_mask.repeat_interleave(times, 0)
        )

    def to(self, device: torch.device | str) -> PromptBatch:
        """Copy to a device."""
        return PromptBatch(self.input_ids.to(device), self.attention_mask.to(device))


class Rollout(NamedTuple):
    """Sampled images: `tokens` int64 (B, N), and `logprobs` float32 (B, N) of them under the `logp_mode`."""

    tokens: Tensor
    logprobs: Tensor


class TokenLogprobs(NamedTuple):
    """Log-probability of each image token under the `logp_mode`, and entropy (nats) of that distribution.

    Both are float32 (B, N).
    """

    logprobs: Tensor
    entropy: Tensor


class Drawing(Protocol):
    """B images that are being sampled, of which some may be given up on the way."""

    @property
    def tokens(self) -> Tensor:
        """What is drawn so far: int64 (B, n)."""

    def advance(self, count: int) -> None:
        """Sample on, until `count` tokens are there."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, int64 indices in rising order."""


class ARImagePolicy(Protocol):
    """An image generator that writes N tokens one after another.

    It is an `nn.Module` whose `forward` is the teacher-forced log-probabilities, so that DDP and FSDP can
    wrap it; everything else is called on the module inside.
    """

    tokens_per_image: int

    def encode(self, prompts: Sequence[str]) -> PromptBatch:
        """Tokenise prompts as the generator reads them, up to and including the begin-of-image token."""

    def unconditional(self, prompts: PromptBatch, rows: Tensor | None = None) -> PromptBatch:
        """Blank the prompts, or those where bool `rows` (B,) is true: what guidance and dropout read."""

    def sample(self, prompts: PromptBatch, uniforms: Tensor, sampling: Sampling) -> Rollout:
        """Sample an image for each prompt, without gradients.

        `uniforms`, float64 (B, N) in [0, 1), are all the chance there is: token n of an image is where the
        cumulated probabilities pass uniform n. So an image depends on its own row alone, whatever batch or
        process it is sampled in.
        """

    def begin(self, prompts: PromptBatch, uniforms: Tensor, sampling: Sampling) -> Drawing:
        """Begin to sample as `sample` does; nothing is drawn yet."""

    def forward(self, prompts: PromptBatch, tokens: Tensor, sampling: Sampling) -> TokenLogprobs:
        """Log-probabilities of image tokens (B, N) under teacher forcing, by `sampling.logp_mode`."""

    def decode(self, tokens: Tensor) -> NDArray[np.uint8]:
        """Turn tokens (B, N) into pictures, uint8 (B, H, W, 3)."""

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn pictures into the tokens (B, N) that `decode` makes pictures like them of.

        Raises:
            ValueError: a picture is not square.
        """

    def reference(self) -> nn.Module:
        """Give a frozen policy that stays as this one is now: a copy, or the base below adapters."""

    def save(self, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write weights, configuration and tokenizer, for `load` here and for `transformers`.

        `state_dict` are the weights where they are not in the module itself: gathered from FSDP.
        """

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Load from a folder or a hub repository."""
