"""Vision-language models that rewards ask: Qwen2-VL, Qwen2.5-VL and LLaVA-OneVision of `transformers`.

A batch is padded on the left and holds each distinct image once: it goes through the vision tower once, and
its features are placed wherever a dialogue shows it. Positions follow the attention mask, so a result does
not depend on padding, on neighbours or on the batch's size. Attention is PyTorch's
`scaled_dot_product_attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from PIL import Image
from torch import Tensor, nn

from rewardzoo.errors import ItemError
from rewardzoo.rewards._vlm_files import build_model, read_images, read_model, read_tokenizer
from rewardzoo.rewards._vlm_images import LlavaImages, QwenImages, TileUse

__all__ = [
    "MAX_BATCH_TOKENS",
    "Positions",
    "Turn",
    "VisionLanguageModel",
    "build_model",
    "penalise_repeats",
    "read_images",
    "read_model",
    "read_tokenizer",
]

Positions = Literal["rotary-3d", "sequential"]
"""How Qwen's tokens are placed: by M-RoPE in time, height and width, or one after the other."""


MAX_BATCH_TOKENS = 32_768
"""Tokens of images that one batch takes, whatever their sizes."""


@dataclass(frozen=True)
class Turn:
    """What one side says. With `image` the item's image stands right in front of the text.

    LLaVA's templates put a newline or a blank behind the image: it belongs to `text`.
    """

    role: Literal["system", "user", "assistant"]
    text: str
    image: bool = False


class VisionLanguageModel(nn.Module):
    """A `transformers` vision-language model with its tokenizer and its image preprocessing.

    `model` is a `Qwen2VLForConditionalGeneration`, `Qwen2_5_VLForConditionalGeneration` or
    `LlavaOnevisionForConditionalGeneration`; `tokenizer` a fast tokenizer of `transformers`.
    """

    penalises_dialogue: ClassVar[bool] = True
    """Whether a repetition penalty falls on the dialogue's own tokens too, or on the answer's alone."""

    limit: int | None = None
    """The longest dialogue in tokens, where the model has one that matters."""
    image_length = 1
    """Tokens of an image, where they are the same for all and count towards `limit`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        images: QwenImages | LlavaImages,
        *,
        positions: Positions = "rotary-3d",
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.encode = plain_encoder(tokenizer)
        self.images = images
        self.image_token: int = tokenizer.convert_tokens_to_ids(images.token)
        self.pad_token: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.spatial = isinstance(images, QwenImages) and positions == "rotary-3d"

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        tiles: TileUse = "anyres",
        pixels: tuple[int, int] | None = None,
        positions: Positions = "rotary-3d",
    ) -> Self:
        """Load a folder as `save_pretrained` writes it: config, safetensors, tokenizer, preprocessor.

        Weights stay in the dtype they are stored in. `tiles` is for LLaVA-OneVision, `pixels` (the least
        and the most of them in an image) and `positions` for Qwen.

        Raises:
            WeightsError: a file is missing, or the weights do not fit the configuration.
        """
        model = read_model(folder)
        return cls(
            model, read_tokenizer(folder), read_images(folder, model, tiles, pixels), positions=positions
        )

    def prepare_image(self, image: Image.Image) -> dict[str, Tensor]:
        """Preprocess one RGB image, as the model's own processor does with PIL. Thread-safe.

        Raises:
            ItemError: Qwen refuses an image with one side more than 200 times the other.
        """
        return self.images.prepare(image)

    def count_of(self, width: int, height: int) -> int:
        """How many tokens an image of that size will take; 1 where it will be refused."""
        try:
            return self.images.count_of(width, height)
        except ItemError:
            return 1

    def chat(self, turns: Sequence[Turn], system: str | None = "You are a helpful assistant.") -> str:
        r"""Write a dialogue in ChatML, up to where the assistant's next turn begins.

        It equals Qwen2-VL's and Qwen2.5-VL's own chat template, and LLaVA-NeXT's `conv_templates["qwen_1_5"]`
        when a turn's text begins with the newline that upstream puts behind `<image>`.

        Raises:
            ItemError: a text holds the token that stands for an image.
        """
        for turn in turns:
            if self.images.token in turn.text:
                raise ItemError(f"the prompt holds {self.images.token!r}, which the model reads as an image")
        said = ([Turn("system", system)] if system is not None else []) + list(turns)
        written = (
            f"<|im_start|>{turn.role}\n{self.images.mark if turn.image else ''}{turn.text}<|im_end|>\n"
            for turn in said
        )
        return "".join(written) + "<|im_start|>assistant\n"

    def collate(
        self, images: Sequence[Mapping[str, Tensor]], image_index: Sequence[int], chats: Sequence[str]
    ) -> dict[str, Tensor]:
        """Make a batch of B dialogues about U prepared images, `image_index` (B) saying which is whose.

        Returns `input_ids` and `attention_mask` (B, L), padded on the left; `position_ids` (B, L), or
        (3, B, L) for M-RoPE; `feature_index` (F,): which row of `encode_images` goes to each image token;
        and the tensors of the images, `pixel_values` among them.
        """
        lengths = [self.images.count(image) for image in images]
        starts = [0, *accumulate(lengths)]
        rows: list[list[int]] = []
        shown: list[int] = []  # the image behind each image mark, in the order of the batch
        for chat, image in zip(chats, image_index, strict=True):
            row: list[int] = []
            for token in self.encode(chat):
                is_image = token == self.image_token
                row += [token] * (lengths[image] if is_image else 1)
                shown += [image] * is_image
            rows.append(row)
        longest = max(map(len, rows))
        ids = torch.tensor([[self.pad_token] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return {
            **self.images.stack(images),
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": self._positions(ids, mask, [images[i] for i in shown]),
            "feature_index": torch.cat([torch.arange(starts[i], starts[i + 1]) for i in shown])
            if shown
            else torch.zeros(0, dtype=torch.long),
        }

    def encode_images(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features of all distinct images of a batch, one after the other: (sum of their tokens, D)."""
        return self.images.encode(self.model, inputs)

    def embed(self, inputs: Mapping[str, Tensor], features: Tensor | None = None) -> Tensor:
        """Token embeddings with the images' features in their places: (B, L, D).

        `features` are those of `encode_images`, where the caller has them already.
        """
        embeds: Tensor = self.model.get_input_embeddings()(inputs["input_ids"])
        if features is None:
            features = self.encode_images(inputs)
        placed = features.index_select(0, inputs["feature_index"]).to(embeds.dtype)
        return embeds.masked_scatter((inputs["input_ids"] == self.image_token)[..., None], placed)

    def hidden_states(self, inputs: Mapping[str, Tensor], features: Tensor | None = None) -> Tensor:
        """Last hidden states, behind the final norm: (B, L, D); rows at padding mean nothing."""
        hidden: Tensor = self._read(inputs, features=features, use_cache=False).last_hidden_state
        return hidden

    def next_token_logits(self, inputs: Mapping[str, Tensor], features: Tensor | None = None) -> Tensor:
        """Logits of the token after each dialogue: (B, V) in float32; differentiable in `pixel_values`."""
        return self._logits(self.hidden_states(inputs, features))

    def logits_at(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits of the tokens after those at `inputs["read"]` (B, R): (B, R, V).

        In float32, or float64 where the weights are; differentiable in `pixel_values`.
        """
        hidden = self.hidden_states(inputs)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        return self._logits_of(hidden[rows, inputs["read"]])

    def generate(
        self, inputs: Mapping[str, Tensor], max_new_tokens: int, *, repetition_penalty: float = 1.0
    ) -> list[str]:
        """Continue each dialogue greedily until it ends or has `max_new_tokens`: B texts.

        `repetition_penalty` is that of `transformers`' generation: over the answer's tokens, and over the
        dialogue's where `penalises_dialogue`.

        Raises:
            ValueError: `max_new_tokens` is less than 1.
        """
        from transformers import DynamicCache

        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        ids, mask, place = inputs["input_ids"], inputs["attention_mask"], inputs["position_ids"]
        cache = DynamicCache(config=self.model.config.get_text_config())
        ends = torch.tensor(sorted(self._end_tokens()), device=ids.device)
        place = place.amax(-1, keepdim=True)
        running = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        said = ids.new_zeros(len(ids), 0)
        out = self._read(inputs, past_key_values=cache, use_cache=True)
        while True:
            logits = self._logits(out.last_hidden_state)
            if repetition_penalty != 1:
                first = 0 if self.penalises_dialogue else ids.shape[1]
                seen = torch.cat([ids, said], 1)[:, first:]
                logits = penalise_repeats(logits, seen, mask[:, first:], repetition_penalty)
            token = torch.where(running, logits.argmax(-1), ends[0])[:, None]
            said = torch.cat([said, token], 1)
            running &= ~torch.isin(token[:, 0], ends)
            if said.shape[1] == max_new_tokens or not running.any():
                break
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            place = place + 1
            out = self.model.model.language_model(
                inputs_embeds=self.model.get_input_embeddings()(token),
                attention_mask=mask,
                position_ids=place,
                past_key_values=cache,
                use_cache=True,
            )
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in said.tolist()]

    def token_id(self, text: str) -> int:
        """The id of `text` as one token.

        Raises:
            ValueError: it is several tokens, or none.
        """
        ids = self.encode(text)
        if len(ids) != 1:
            raise ValueError(f"{text!r} must be one token of this model, it is {len(ids)}")
        return ids[0]

    def _read(self, inputs: Mapping[str, Tensor], features: Tensor | None = None, **options: Any) -> Any:
        return self.model.model.language_model(
            inputs_embeds=self.embed(inputs, features),
            attention_mask=inputs["attention_mask"],
            position_ids=inputs["position_ids"],
            **options,
        )

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._logits_of(hidden[:, -1])

    def _logits_of(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.lm_head(hidden)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _positions(self, ids: Tensor, mask: Tensor, shown: Sequence[Mapping[str, Tensor]]) -> Tensor:
        if not self.spatial:
            return (mask.cumsum(1) - 1).clamp(min=0)
        positions, _ = self.model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self.image_token).int(),
            image_grid_thw=torch.stack([image["image_grid_thw"] for image in shown]) if shown else None,
            attention_mask=mask,
        )
        return cast(Tensor, positions)

    def _end_tokens(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        known = ends if isinstance(ends, list) else [ends]
        return {token for token in [*known, self.tokenizer.eos_token_id] if token is not None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast the weights, but never cast the rotary frequencies: in bfloat16 they are wrong."""
        kept = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name.endswith("inv_freq")
        ]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, name, buffer in kept:
            setattr(module, name, buffer.to(getattr(module, name).device))
        return self


def penalise_repeats(logits: Tensor, ids: Tensor, mask: Tensor, penalty: float) -> Tensor:
    """Lower the logits (B, V) of tokens that occur in `ids` (B, L), padding apart, by `penalty`.

    Source: `transformers`, `RepetitionPenaltyLogitsProcessor`.
    """
    counts = torch.zeros(logits.shape, dtype=torch.long, device=logits.device)
    seen = counts.scatter_add(1, ids, mask.to(counts)) > 0
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def plain_encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """Return a thread-safe function from a text to its token ids, special tokens read but none added."""
    own = tokenizer.backend_tokenizer
    own.no_padding()
    own.no_truncation()
    return lambda text: cast(list[int], own.encode(text, add_special_tokens=False).ids)
