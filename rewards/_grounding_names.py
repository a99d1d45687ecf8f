"""Names of GroundingDINO's weights: the original checkpoint's and the hub's, onto those of `transformers`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

_SWIN = r"model.backbone.conv_encoder.model."
_RENAMES = tuple(  # in this order; the original checkpoint's first, then the hub's older names
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^module\.", ""),
        (r"^backbone\.0\.patch_embed\.proj\.", rf"{_SWIN}embeddings.patch_embeddings.projection."),
        (r"^backbone\.0\.patch_embed\.norm\.", rf"{_SWIN}embeddings.norm."),
        (r"^backbone\.0\.norm1\.", rf"{_SWIN}hidden_states_norms.stage2."),
        (r"^backbone\.0\.norm2\.", rf"{_SWIN}hidden_states_norms.stage3."),
        (r"^backbone\.0\.norm3\.", rf"{_SWIN}hidden_states_norms.stage4."),
        (r"^backbone\.0\.layers\.", rf"{_SWIN}encoder.layers."),
        (r"(blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
        (r"(blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
        (r"(blocks\.\d+)\.attn\.proj\.", r"\1.attention.o_proj."),
        (
            r"(blocks\.\d+)\.attn\.relative_position_bias_table$",
            r"\1.attention.self.relative_position_bias_table",
        ),
        (r"^input_proj\.", "model.input_proj_vision."),
        (r"^bert\.", "model.text_backbone."),
        (r"^feat_map\.", "model.text_projection."),
        (r"^transformer\.tgt_embed\.", "model.query_position_embeddings."),
        (r"^transformer\.enc_out_bbox_embed\.", "model.encoder_output_bbox_embed."),
        (r"^transformer\.decoder\.ref_point_head\.", "model.decoder.reference_points_head."),
        (r"^transformer\.decoder\.norm\.", "model.decoder.layer_norm."),
        (r"^transformer\.encoder\.text_layers\.(\d+)\.", r"model.encoder.layers.\1.text_enhancer_layer."),
        (r"^transformer\.encoder\.fusion_layers\.(\d+)\.", r"model.encoder.layers.\1.fusion_layer."),
        (r"^transformer\.encoder\.layers\.(\d+)\.", r"model.encoder.layers.\1.deformable_layer."),
        (r"^transformer\.", "model."),
        (r"(text_enhancer_layer)\.norm1\.", r"\1.layer_norm_before."),
        (r"(text_enhancer_layer)\.norm2\.", r"\1.layer_norm_after."),
        (r"(deformable_layer)\.norm1\.", r"\1.self_attn_layer_norm."),
        (r"(deformable_layer)\.norm2\.", r"\1.final_layer_norm."),
        (r"(fusion_layer)\.gamma_v$", r"\1.vision_param"),
        (r"(fusion_layer)\.gamma_l$", r"\1.text_param"),
        (r"(fusion_layer)\.layer_norm_v\.", r"\1.layer_norm_vision."),
        (r"(fusion_layer)\.layer_norm_l\.", r"\1.layer_norm_text."),
        (r"(fusion_layer\.attn\.(?:values_|out_)?)v_proj\.", r"\1vision_proj."),
        (r"(fusion_layer\.attn\.(?:values_|out_)?)l_proj\.", r"\1text_proj."),
        (r"(model\.decoder\.layers\.\d+)\.cross_attn\.", r"\1.encoder_attn."),
        (r"(model\.decoder\.layers\.\d+)\.ca_text\.", r"\1.encoder_attn_text."),
        (r"(model\.decoder\.layers\.\d+)\.catext_norm\.", r"\1.encoder_attn_text_layer_norm."),
        (r"(model\.decoder\.layers\.\d+)\.norm1\.", r"\1.encoder_attn_layer_norm."),
        (r"(model\.decoder\.layers\.\d+)\.norm2\.", r"\1.self_attn_layer_norm."),
        (r"(model\.decoder\.layers\.\d+)\.norm3\.", r"\1.final_layer_norm."),
        (r"(layer|layers\.\d+)\.linear([12])\.", r"\1.fc\2."),
        (r"(blocks\.\d+\.attention)\.self\.query\.", r"\1.q_proj."),
        (r"(blocks\.\d+\.attention)\.self\.key\.", r"\1.k_proj."),
        (r"(blocks\.\d+\.attention)\.self\.value\.", r"\1.v_proj."),
        (r"(blocks\.\d+\.attention)\.self\.(relative_position_bias_table)$", r"\1.relative_position_bias.\2"),
        (r"(blocks\.\d+\.attention)\.output\.dense\.", r"\1.o_proj."),
        (r"(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
        (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (rf"^{re.escape(_SWIN)}(embeddings|encoder)\.", rf"{_SWIN}swin.\1."),
    )
)
_UNUSED = re.compile(r"relative_position_index$|position_ids$|^(module\.)?(label_enc|bert\.pooler)\.")
_STACKED = (  # several layers in one matrix, in this order
    (re.compile(r"\.attn\.qkv\.(weight|bias)$"), r".attention.{}.\1", ("q_proj", "k_proj", "v_proj")),
    (re.compile(r"\.in_proj_(weight|bias)$"), r".{}.\1", ("query", "key", "value")),
)


def rename(state: Mapping[str, Any], layers: int) -> dict[str, Tensor]:
    """Map a checkpoint's keys onto those of `transformers`' detector with `layers` decoder layers.

    Takes the original `{"model": …}`, and files that `transformers` saved before and after it renamed
    Swin's parts. One box head serves all decoder layers, and some files have it once. Keys that are not
    known pass, for the strict load to judge.
    """
    renamed = {}
    for key, tensor in cast(Mapping[str, Tensor], state.get("model", state)).items():
        if _UNUSED.search(key):
            continue
        for pattern, replacement in _RENAMES:
            key = pattern.sub(replacement, key)
        for pattern, replacement, parts in _STACKED:
            if pattern.search(key):
                for part, rows in zip(parts, tensor.chunk(3), strict=True):
                    renamed[pattern.sub(replacement.format(part), key)] = rows
                break
        else:
            renamed[key] = tensor
    head = re.compile(r"^(?:model\.decoder\.)?bbox_embed\.0\.")
    for key in [key for key in renamed if head.search(key)]:
        for owner in ("", "model.decoder."):
            for layer in range(layers):
                renamed.setdefault(head.sub(f"{owner}bbox_embed.{layer}.", key), renamed[key])
    return renamed
