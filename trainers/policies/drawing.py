"""Images of Janus that are being sampled, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from rewardzoo.trainers.policies.kv_cache import RoomyCache, with_room
from rewardzoo.trainers.policies.policy import PromptBatch, Sampling
from rewardzoo.trainers.policies.token_probabilities import draw, guide

if TYPE_CHECKING:
    from rewardzoo.trainers.policies.janus import JanusPolicy


class JanusDrawing:
    """A `Drawing` of B images, with the log-probabilities of its tokens under the `logp_mode`."""

    def __init__(
        self, policy: JanusPolicy, prompts: PromptBatch, uniforms: Tensor, sampling: Sampling
    ) -> None:
        self._policy, self._uniforms, self._sampling = policy, uniforms, sampling
        self._guided = sampling.guidance_scale != 1
        # R = 2B rows with guidance, each prompt's blank behind all prompts; else B.
        self._read = policy.with_unconditional(prompts) if self._guided else prompts
        self._cache: RoomyCache | None = None
        self._mask = self._read.attention_mask  # (R, L), and once the cache is there (R, L + N - 1)
        self._last = uniforms.new_zeros(len(prompts), dtype=torch.long)  # (B,), the token drawn last
        self._count = 0  # tokens drawn
        self.tokens = uniforms.new_zeros(len(prompts), 0, dtype=torch.long)
        self.logprobs = uniforms.new_zeros(len(prompts), 0, dtype=torch.float32)

    @torch.no_grad()
    def advance(self, count: int) -> None:
        """Sample on, until `count` tokens are there.

        Raises:
            ValueError: an image has fewer.
        """
        total = self._uniforms.shape[1]
        if count > total:
            raise ValueError(f"an image has {total} tokens, got {count}")
        training = self._policy.training
        self._policy.eval()  # a layer in training mode with gradient checkpointing ignores the cache
        try:
            drawn = [self._next() for _ in range(self.tokens.shape[1], count)]
        finally:
            self._policy.train(training)
        if drawn:
            tokens, logprobs = (torch.stack(column, 1) for column in zip(*drawn, strict=True))
            self.tokens = torch.cat([self.tokens, tokens], 1)
            self.logprobs = torch.cat([self.logprobs, logprobs], 1)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, int64 indices in rising order."""
        rows = rows.to(self.tokens.device)
        both = torch.cat([rows, rows + len(self.tokens)]) if self._guided else rows
        self._uniforms, self.tokens, self.logprobs = (
            each[rows] for each in (self._uniforms, self.tokens, self.logprobs)
        )
        self._read = self._read[both]
        self._mask, self._last = self._mask[both], self._last[rows]
        if self._cache is not None:
            self._cache.keep(both)

    def _next(self) -> tuple[Tensor, Tensor]:
        """Draw each image's next token: (B,), and its log-probability (B,)."""
        logits = self._policy.janus.model.generation_head(self._look_again()).float()  # (R, V)
        conditional, unconditional = logits.chunk(2) if self._guided else (logits, None)
        sampling = self._sampling
        drawn_from = guide(conditional, unconditional, sampling.guidance_scale) / sampling.temperature
        self._last = draw(drawn_from, self._uniforms[:, self._count])  # (B,)
        self._count += 1
        scored = conditional if sampling.logp_mode == "cond" else drawn_from
        return self._last, scored.log_softmax(-1).gather(1, self._last[:, None])[:, 0]

    def _look_again(self) -> Tensor:
        """Read the prompts, or the token drawn last: hidden states (R, D) of what comes next."""
        policy, read = self._policy, self._read
        length = read.input_ids.shape[1]
        if self._cache is None:
            pairs = torch.cat([read.input_ids, read.attention_mask], 1)
            once, rows = torch.unique(pairs, dim=0, return_inverse=True)
            prefix = DynamicCache(config=policy.janus.config.text_config)
            states = policy.read(policy.embed(once[:, :length]), once[:, length:], cache=prefix)
            room = self._uniforms.shape[1] - 1
            self._cache = with_room(prefix, rows, room)
            self._mask = torch.cat([read.attention_mask, read.attention_mask.new_ones(len(rows), room)], 1)
            return states[:, -1][rows]
        written = policy.janus.prepare_embeddings_for_image_generation(self._last[:, None])
        written = written.repeat(2, 1, 1) if self._guided else written
        return policy.read(written, self._mask[:, : length + self._count], cache=self._cache)[:, -1]
