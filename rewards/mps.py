"""MPS: CLIP ViT-H/14 whose image looks again at the words of the prompt that a condition picks out.

Paper: arXiv 2405.14705. Source of the recipe: Kwai-Kolors/MPS, `trainer/models/clip_model.py`,
`trainer/models/cross_modeling.py`, `README.md` and `eval_overall_mps_on_hpdv2.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor, nn

from rewardzoo.errors import ItemError
from rewardzoo.resize import ShortestAndCrop
from rewardzoo.rewards import _clip
from rewardzoo.rewards._model import RewardModel
from rewardzoo.rewards._spec import HubFile, RewardSpec, Variant
from rewardzoo.rewards._weights import load_strictly, read_checkpoint, read_module_checkpoint

CONDITIONS: Mapping[str, str] = {
    "overall": (
        "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, "
        "instance, texture, quantity, attributes, position, number, location, word, things."
    ),
    "aesthetics": "light, color, clarity, tone, style, ambiance, artistry",
    "detail": "shape, face, hair, hands, limbs, structure, instance, texture",
    "alignment": "quantity, attributes, position, number, location",
}
"""Conditions by name. The released weights were trained with "overall" alone; the others are parts of it."""

_THRESHOLDS: Mapping[str, float] = {"mps/v1": 0.01, "mps/eval": 0.3}
"""By recipe: how much of the highest likeness to the condition a token needs to be looked at."""

_FILES = {
    "checkpoint": HubFile("RE-N-Y/mpsv1", "model.safetensors", "main"),
    "tokenizer": HubFile(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "tokenizer.json",
        "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
    ),
}
_SQUARE = ShortestAndCrop(224, round_corner=False)
_CONFIG = {**_clip.VIT_H_14, "cross": {"layers": 4, "heads": 16, "head_width": 64}}


class MPS(RewardModel):
    """Multi-dimensional Preference Score; metadata `{"condition": …}` takes a name or words of one's own."""

    spec = RewardSpec(
        name="mps",
        title="Multi-dimensional Preference Score",
        paper="arXiv:2405.14705",
        code_license="MIT",
        score_range=(0.0, 30.0),
        variants=(
            Variant("v1", "mps/v1", _FILES, "unknown", _CONFIG, resize=_SQUARE),
            Variant("v1-eval", "mps/eval", _FILES, "unknown", _CONFIG, quirk=True, resize=_SQUARE),
        ),
        gpu_dtype="float16",  # what upstream runs in
    )

    def __init__(self, variant: Variant, net: ConditionedClip, tokenize: _clip.Tokenize) -> None:
        super().__init__(variant, net)
        self.tokenize = tokenize
        self.threshold = _THRESHOLDS[variant.recipe]
        self.image_size: int = net.model.config.vision_config.image_size

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        """Read the module that upstream pickled (`.pth`), or the copy on the hub (`.safetensors`)."""
        from transformers.initialization import no_init_weights

        path = files["checkpoint"]
        read = read_checkpoint if path.suffix == ".safetensors" else read_module_checkpoint
        with no_init_weights():
            net = ConditionedClip(variant.config)
        load_strictly(net, rename_upstream(read(path)), path)
        # Padding is looked at too, so that its length and token matter: 77 and the end token.
        length: int = net.model.config.text_config.max_position_embeddings
        return cls(variant, net, _clip.tokenizer(files["tokenizer"], length, fill=True))

    def prepare_image(self, image: Image.Image) -> Tensor:
        """Resize the shortest side, crop the centre, normalise: (3, S, S)."""
        return _clip.pixels_of(image, self.image_size, "transformers")

    def prepare_prompt(self, prompt: str, metadata: Mapping[str, Any]) -> tuple[str, str]:
        """Return the prompt and the words of the condition."""
        condition = metadata.get("condition", "overall")
        if not isinstance(condition, str) or not condition.strip():
            names = ", ".join(CONDITIONS)
            raise ItemError(f"metadata 'condition' must be words, or one of {names}; got {condition!r}")
        return prompt, CONDITIONS.get(condition, condition)

    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Stack the distinct images and tokenise the distinct prompts and conditions, with indices (B,)."""
        prompts = list(dict.fromkeys(prompt for prompt, _ in asked))
        conditions = list(dict.fromkeys(condition for _, condition in asked))
        return {
            "pixel_values": torch.stack(list(images)),
            "image_index": torch.tensor(image_index),
            "input_ids": self.tokenize(prompts),
            "text_index": torch.tensor([prompts.index(prompt) for prompt, _ in asked]),
            "condition_ids": self.tokenize(conditions),
            "condition_index": torch.tensor([conditions.index(condition) for _, condition in asked]),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Scaled cosine of the prompt and the conditioned image, (B,); differentiable in the pixels."""
        net = cast(ConditionedClip, self.net)
        patches = net.encode_images(inputs["pixel_values"])[inputs["image_index"]]
        tokens, ends = net.encode_texts(inputs["input_ids"])
        tokens, ends = tokens[inputs["text_index"]], ends[inputs["text_index"]]
        condition = net.encode_texts(inputs["condition_ids"])[0][inputs["condition_index"]]
        likeness = (tokens @ condition.transpose(1, 2)).amax(dim=2)  # (B, L)
        # Upstream divides by the maximum over the batch, which lets neighbours change a score.
        looked_at = likeness / likeness.amax(dim=1, keepdim=True) > self.threshold
        image = net.cross_model(patches, tokens, looked_at)[:, 0]
        cosine = (F.normalize(ends, dim=-1) * F.normalize(image, dim=-1)).sum(-1)
        scale: Tensor = net.model.logit_scale.exp()
        return scale * cosine


class ConditionedClip(nn.Module):
    """CLIP, and the blocks in which its image patches attend to tokens of the prompt."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model: Any = _clip.build(config)
        self.cross_model = CrossModel(config["projection_dim"], **config["cross"])

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Project every patch, the class token first: (N, 3, S, S) -> (N, 1 + P, D)."""
        hidden = self.model.vision_model(pixel_values=pixel_values).last_hidden_state
        return cast(Tensor, self.model.visual_projection(hidden))

    def encode_texts(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Project every token, and the end token apart: (N, L) -> (N, L, D), (N, D)."""
        output = self.model.text_model(input_ids=input_ids)
        project = self.model.text_projection
        return project(output.last_hidden_state), project(output.pooler_output)


class CrossModel(nn.Module):
    """Upstream's cross-attention: blocks after PaLM, with one key and value head for all query heads."""

    def __init__(self, width: int, layers: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "cross": CrossAttention(width, heads, head_width),
                    "parallel": ParallelBlock(width, heads, head_width),
                }
            )
            for _ in range(layers)
        )

    def forward(self, patches: Tensor, tokens: Tensor, looked_at: Tensor) -> Tensor:
        """Patches (B, N, D), tokens (B, L, D), and which of the tokens to attend to (B, L) -> (B, N, D)."""
        for layer in self.layers:
            blocks = cast(nn.ModuleDict, layer)
            patches = patches + blocks["cross"](patches, tokens, looked_at)
            patches = patches + blocks["parallel"](patches)
        return patches


class CrossAttention(nn.Module):
    """Attention of patches to tokens, beside a gated feed-forward."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 8 * width, bias=False), SwiGLU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, patches: Tensor, tokens: Tensor, looked_at: Tensor) -> Tensor:
        """(B, N, D), (B, L, D), (B, L) -> (B, N, D)."""
        patches = self.norm(patches)
        queries = self.to_q(patches).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.to_kv(tokens).chunk(2, dim=-1)
        out = _attend(queries, key, value, looked_at[:, None, None])
        return cast(Tensor, self.to_out(out) + self.ff(patches))


class ParallelBlock(nn.Module):
    """Attention among patches, their order given by rotary places, beside a gated feed-forward."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.parts = (heads * head_width, head_width, head_width, 8 * width)
        self.norm = nn.LayerNorm(width)
        self.rotary_emb = RotaryPlaces(head_width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(heads * head_width, width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(4 * width, width, bias=False))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        query, key, value, gated = self.fused_attn_ff_proj(self.norm(patches)).split(self.parts, dim=-1)
        queries = query.unflatten(2, (self.heads, -1)).transpose(1, 2)
        out = _attend(self.rotary_emb(queries), self.rotary_emb(key), value, None)
        return cast(Tensor, self.attn_out(out) + self.ff_out(gated))


class RotaryPlaces(nn.Module):
    """Rotary position embedding; its frequencies are part of the checkpoint."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", 10000 ** -(torch.arange(0, width, 2) / width))

    def forward(self, vectors: Tensor) -> Tensor:
        """Turn vectors (…, N, width) by their places."""
        places = torch.arange(vectors.shape[-2], device=vectors.device, dtype=self.inv_freq.dtype)
        angles = torch.outer(places, self.inv_freq)
        cos, sin = angles.cos(), angles.sin()
        first, second = vectors.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class SwiGLU(nn.Module):
    """The first half of the last dimension, gated by the second."""

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, 2 W) -> (…, W)."""
        value, gate = hidden.chunk(2, dim=-1)
        return F.silu(gate) * value


def _attend(queries: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from (B, H, N, W) to one head (B, L, W): (B, N, H W)."""
    shape = queries.shape[1]
    keys, values = (t[:, None].expand(-1, shape, -1, -1) for t in (key, value))
    out = F.scaled_dot_product_attention(queries, keys, values, mask)
    return out.transpose(1, 2).flatten(2)


def rename_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map the keys of upstream's module, or of its copy on the hub, onto `ConditionedClip`'s."""
    renamed = {}
    for key, weight in _clip.without_positions(state).items():
        key = key.removeprefix("mps.")
        key = re.sub(r"^cross_model\.layers\.(\d+)\.0\.fn\.", r"cross_model.layers.\1.cross.", key)
        key = re.sub(r"^cross_model\.layers\.(\d+)\.1\.fn\.", r"cross_model.layers.\1.parallel.", key)
        renamed[key] = weight
    return renamed
