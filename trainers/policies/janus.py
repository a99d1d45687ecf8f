"""Janus and Janus-Pro as a policy: sampling, teacher forcing, decoding, freezing, files."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from rewardzoo.trainers.policies import checkpoints, lora
from rewardzoo.trainers.policies.drawing import JanusDrawing
from rewardzoo.trainers.policies.policy import PromptBatch, Rollout, Sampling, TokenLogprobs
from rewardzoo.trainers.policies.token_probabilities import score_tokens

_DECODED_AT_ONCE = 16
_GENERATION = ("generation_head", "generation_embeddings", "generation_aligner")


class JanusPolicy(nn.Module):
    """`JanusForConditionalGeneration` and its processor as an `ARImagePolicy`.

    Trained are the language model and, unless `train_head` is false, what reads and writes image tokens:
    generation head, embeddings and aligner (T2I-R1 freezes these three). Vision tower, its aligner, VQ and
    text head are frozen always; where the text head is tied to the input embeddings it follows them. With
    adapters (`adapt`, or `adapter` in `load`) these alone are trained.

    DDP wraps it as it is. For FSDP2 take the `reference` before sharding and shard it likewise, and hand
    "sample" and "decode" to `torch.distributed.fsdp.register_fsdp_forward_method`. Do not reshard layers
    after the forward pass (`reshard_after_forward=False`), or each token gathers each of them anew.
    """

    def __init__(self, janus: Any, processor: Any, *, train_head: bool = True) -> None:
        super().__init__()
        text = janus.config.text_config
        if text.attention_dropout:
            raise ValueError(
                f"attention_dropout is {text.attention_dropout}: what is sampled and what is trained would "
                "have other probabilities. Set it to 0 in the text_config."
            )
        self.janus = janus
        self.processor = processor
        self.tokens_per_image: int = janus.config.vq_config.num_patches**2
        tokenizer = processor.tokenizer
        self._pad: int = tokenizer.pad_token_id
        self._kept = (tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids(tokenizer.boi_token))
        janus.requires_grad_(False)
        for part in ("language_model", *(_GENERATION if train_head else ())):
            getattr(janus.model, part).requires_grad_(True)
        self._peft: tuple[Any, ...] = ()  # a tuple, for its modules are those of `janus`
        self.eval()

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        attention: str | None = None,
        train_head: bool = True,
        adapter: str | Path | None = None,
    ) -> Self:
        """Load from a folder, a hub repository (deepseek-community/Janus-Pro-1B, -7B), or the lab: "mini".

        `attention` is `transformers`' `attn_implementation`, by default the best that is installed;
        `adapter` the folder of a saved LoRA adapter.

        Raises:
            WeightsError: it cannot be read, is no Janus or has no processor. The message says what to do.
        """
        janus, processor = checkpoints.read(name_or_path, revision=revision, dtype=dtype, attention=attention)
        policy = cls(janus, processor, train_head=train_head)
        if adapter is not None:
            policy._peft = (lora.read(janus, adapter),)
        return policy.to(device)

    def adapt(self, adapters: lora.LoRA) -> Self:
        """Add fresh LoRA adapters to the language model, and train these alone; return the policy."""
        if self._peft:
            raise ValueError("this policy has adapters already; load the base to begin anew")
        self._peft = (lora.add(self.janus, adapters),)
        return self

    def gradient_checkpointing(self, enable: bool = True) -> None:
        """Recompute the language model's layers in the backward pass, in training mode, to save memory."""
        language = self.janus.model.language_model
        if enable:
            language.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            language.gradient_checkpointing_disable()

    def parameter_counts(self) -> dict[str, tuple[int, int]]:
        """How many parameters each part has: those that are trained, and all."""
        counts: dict[str, tuple[int, int]] = {}
        for name, parameter in self.named_parameters():
            part = name.removeprefix("janus.").removeprefix("model.").partition(".")[0]
            trained, total = counts.get(part, (0, 0))
            size = parameter.numel()
            counts[part] = (trained + size * parameter.requires_grad, total + size)
        return counts

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def encode(self, prompts: Sequence[str]) -> PromptBatch:
        """Tokenise prompts as `transformers` does for images: chat template, then begin-of-image.

        Of Janus-Pro that is `<|User|>: PROMPT\\n\\n<|Assistant|>:<begin_of_image>`; a processor without a
        chat template takes prompts as they are.
        """
        texts = list(prompts)
        if self.processor.chat_template is not None:
            texts = [self.processor.apply_chat_template(_said(t), add_generation_prompt=True) for t in texts]
        inputs = self.processor(
            text=texts, generation_mode="image", padding=True, padding_side="left", return_tensors="pt"
        )
        return PromptBatch(inputs["input_ids"], inputs["attention_mask"])

    def unconditional(self, prompts: PromptBatch, rows: Tensor | None = None) -> PromptBatch:
        """Replace all but the begin-of-sentence and begin-of-image tokens by padding that is attended to.

        So a blank prompt is as long as the one that it stands for, as in Janus and in `transformers`.
        """
        ids = prompts.input_ids
        blank = (ids != self._kept[0]) & (ids != self._kept[1])
        if rows is not None:
            blank = blank & rows.to(ids.device)[:, None]
        return PromptBatch(ids.masked_fill(blank, self._pad), prompts.attention_mask)

    def sample(self, prompts: PromptBatch, uniforms: Tensor, sampling: Sampling) -> Rollout:
        """Sample an image for each prompt; see `ARImagePolicy.sample`.

        A prompt that repeats is read once. At guidance 1 there is no unconditional pass.
        """
        drawing = self.begin(prompts, uniforms, sampling)
        drawing.advance(self.tokens_per_image)
        return Rollout(drawing.tokens, drawing.logprobs)

    def begin(self, prompts: PromptBatch, uniforms: Tensor, sampling: Sampling) -> JanusDrawing:
        """Begin to sample an image for each prompt; see `ARImagePolicy.begin`."""
        wanted = (len(prompts), self.tokens_per_image)
        if uniforms.shape != wanted:
            raise ValueError(f"uniforms are {tuple(uniforms.shape)}, these prompts need {wanted}")
        if not bool(((uniforms >= 0) & (uniforms < 1)).all()):
            raise ValueError("uniforms must be in [0, 1): draw them with torch.rand(…, dtype=torch.float64)")
        prompts, uniforms = prompts.to(self.device), uniforms.to(self.device, torch.float64)
        return JanusDrawing(self, prompts, uniforms, sampling)

    def forward(self, prompts: PromptBatch, tokens: Tensor, sampling: Sampling) -> TokenLogprobs:
        """Log-probabilities of image tokens (B, N) under teacher forcing; see `ARImagePolicy.forward`."""
        if tokens.shape != (wanted := (len(prompts), self.tokens_per_image)):
            raise ValueError(f"tokens are {tuple(tokens.shape)}, these prompts need {wanted}")
        prompts, tokens = prompts.to(self.device), tokens.to(self.device)
        head, codes = self.janus.model.generation_head, self.janus.config.vq_config.num_embeddings
        if sampling.logp_mode == "cond":
            return score_tokens(head, self._states(prompts, tokens), None, tokens, codes=codes)
        scale, temperature = sampling.guidance_scale, sampling.temperature
        detach = sampling.logp_mode == "cfg_detach_uncond"
        if scale == 1:
            conditional, unconditional = self._states(prompts, tokens), None
        elif detach:
            conditional = self._states(prompts, tokens)
            with torch.no_grad():
                unconditional = self._states(self.unconditional(prompts), tokens)
        else:
            both = self._states(self.with_unconditional(prompts), tokens.repeat(2, 1))
            conditional, unconditional = both.chunk(2)
        return score_tokens(
            head,
            conditional,
            unconditional,
            tokens,
            codes=codes,
            scale=scale,
            temperature=temperature,
            detach_unconditional=detach,
        )

    def _states(self, prompts: PromptBatch, tokens: Tensor) -> Tensor:
        """Hidden states (B, N, D) that predict `tokens` (B, N), each from all that comes before it."""
        images = self.janus.prepare_embeddings_for_image_generation(tokens[:, :-1])
        embeds = torch.cat([self.embed(prompts.input_ids), images], 1)
        mask = torch.cat([prompts.attention_mask, prompts.attention_mask.new_ones(images.shape[:2])], 1)
        return self.read(embeds, mask)[:, -tokens.shape[1] :]

    def read(self, embeds: Tensor, mask: Tensor, cache: Any = None) -> Tensor:
        """Hidden states (B, T, D) of the last T columns of `mask` (B, S); its ones count the positions."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
        out: Tensor = self.janus.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return out

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (B, L, D) of text tokens (B, L)."""
        embeds: Tensor = self.janus.get_input_embeddings()(ids)
        return embeds

    def with_unconditional(self, prompts: PromptBatch) -> PromptBatch:
        """The B prompts, then each one's blank: (2B, L)."""
        blank = self.unconditional(prompts).input_ids
        return PromptBatch(torch.cat([prompts.input_ids, blank]), prompts.attention_mask.repeat(2, 1))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> NDArray[np.uint8]:
        """Turn tokens (B, N) into pictures, uint8 (B, H, W, 3), rounded down as Janus's own code does."""
        pictures = []
        for some in torch.split(tokens.to(self.device), _DECODED_AT_ONCE):
            pixels = self.janus.decode_image_tokens(some).float()  # in [-1, 1] and somewhat beyond
            pictures.append(((pixels + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).cpu().numpy())
        return np.concatenate(pictures)

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn pictures, brought to the size of its own, into their tokens (B, N) of the VQ.

        Raises:
            ValueError: a picture is not square: what is to be cut off is not for us to say.
        """
        tokens = []
        for image in images:
            if image.width != image.height:
                raise ValueError(f"a picture must be square, got {image.width}x{image.height}: crop it first")
            config = self.janus.config.vq_config
            side = config.num_patches * 2 ** (len(config.channel_multiplier) - 1)
            sized = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(sized)).permute(2, 0, 1)[None]  # (1, 3, H, W)
            scaled = (pixels / 127.5 - 1).to(self.device, self.janus.dtype)
            tokens.append(self.janus.model.vqmodel.encode(scaled).image_tokens.view(1, -1))
        return torch.cat(tokens)

    def reference(self) -> Self:
        """Give a frozen policy that stays as this one is now.

        What is trained is copied; what is frozen, the tokenizer too, is shared.
        """
        shared: list[Any] = [p for p in self.parameters() if not p.requires_grad]
        shared += [*self.buffers(), self.processor]
        frozen = copy.deepcopy(self, {id(thing): thing for thing in shared})
        return frozen.requires_grad_(False).eval()

    def save(self, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write weights, configuration and processor, for `load` here and for `transformers`.

        Adapters are merged into the weights, and written alone into the folder `adapter` for peft.
        `state_dict` are this policy's weights where they are not in the module itself: gathered from FSDP.
        """
        if state_dict is None:
            state_dict = self.state_dict()
        own = {name.removeprefix("janus."): weight for name, weight in state_dict.items()}
        for peft in self._peft:
            theirs = {f"base_model.model.{name}": weight for name, weight in own.items()}
            peft.save_pretrained(str(Path(folder) / lora.ADAPTER), state_dict=theirs)
            own = lora.merged(self.janus, own)
        self.janus.save_pretrained(folder, state_dict=own)
        self.processor.save_pretrained(folder)


def _said(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
