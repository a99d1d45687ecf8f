"""Salesforce's BLIP on the classes of `transformers`: the names of its weights, and a fault to mend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

_VISION = (  # of salesforce/BLIP's models/vit.py -> of BlipVisionModel
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)
_UPSTREAM, _OURS = "visual_encoder.", "vision_model."


def rename_upstream(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Map upstream's names onto those of `transformers`' BLIP, without the constants of older checkpoints.

    `prefix` is what stands before every name and is taken off. Names that are not upstream's pass, for a
    strict load to judge.
    """
    renamed = {}
    for key, tensor in state.items():
        if not key.endswith("position_ids"):
            renamed[_rename(key.removeprefix(prefix))] = tensor
    return renamed


def _rename(key: str) -> str:
    if key.startswith(_UPSTREAM):
        for pattern, replacement in _VISION:
            inner, changed = re.subn(pattern, replacement, key.removeprefix(_UPSTREAM))
            if changed:
                return _OURS + inner
    return key


def resize_positions(positions: Tensor, patches: int) -> Tensor:
    """Return position embeddings (1, 1 + P, D) of a square image for one of `patches` patches.

    Bicubic, as `interpolate_pos_embed` in upstream's models/vit.py does when it loads a checkpoint.
    """
    old, new = (round(count**0.5) for count in (positions.shape[1] - 1, patches))
    if old == new:
        return positions
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=(new, new), mode="bicubic").to(positions.dtype)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def mend_cross_attention(net: nn.Module) -> None:
    """Let the text layers of `net` heed the mask of what they cross-attend to.

    `transformers` (5.20 to 5.23 at least) hands it to `BlipTextSelfAttention` under another name than the
    one that is read there, so that text would attend to the padding of a question in a batch.
    """
    for name, module in net.named_modules():
        if name.endswith("crossattention.self"):
            module.register_forward_pre_hook(_pass_mask, with_kwargs=True)


def _pass_mask(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if kwargs.get("encoder_attention_mask") is None:
        kwargs = {**kwargs, "encoder_attention_mask": kwargs.get("attention_mask")}
    return args, kwargs
