"""GroundingDINO's decoder with its boxes moved as upstream moves them.

`transformers` undoes a box's sigmoid with a limit of 1e-5 where the detector was trained with 1e-3, so it
puts a box elsewhere that has a coordinate or a side below 0.001 or above 0.999.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn


class Decoder(nn.Module):
    """The layers and heads of `transformers`' `GroundingDinoDecoder`, under the same names, without dropout.

    It takes that module's place: `detector.model.decoder = Decoder(detector.model.decoder)`.
    """

    def __init__(self, theirs: nn.Module) -> None:
        super().__init__()
        own = cast(Any, theirs)
        self.config = own.config
        self.layers: nn.ModuleList = own.layers
        self.layer_norm: nn.Module = own.layer_norm
        self.reference_points_head: nn.Module = own.reference_points_head
        self.bbox_embed: nn.ModuleList = own.bbox_embed

    def forward(
        self,
        *,
        inputs_embeds: Tensor,
        reference_points: Tensor,
        valid_ratios: Tensor,
        text_encoder_attention_mask: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **given: Any,
    ) -> SimpleNamespace:
        """Move queries (B, Q, D) and their boxes (B, Q, 4) from layer to layer.

        `valid_ratios` (B, levels, 2), `text_encoder_attention_mask` (B, L), true where a token is not to be
        read; what else a layer takes is `given`. The `output_` and `return_dict` switches are not obeyed.
        Returns what `GroundingDinoModel` reads: the queries after each layer (B, layers, Q, D), normalised,
        and the boxes after each (B, layers, Q, 4).
        """
        hidden, boxes = inputs_embeds, reference_points
        unread = text_encoder_attention_mask[:, None, None].expand(
            -1, self.config.decoder_attention_heads, boxes.shape[1], -1
        )
        normed, moved = [], []
        for layer, head in zip(self.layers, self.bbox_embed, strict=True):
            points = boxes[:, :, None] * torch.cat([valid_ratios, valid_ratios], -1)[:, None]
            (hidden,) = layer(
                hidden_states=hidden,
                position_embeddings=self.reference_points_head(
                    sines(points[:, :, 0], self.config.d_model // 2)
                ),
                reference_points=points,
                text_encoder_attention_mask=unread.to(hidden.dtype) * torch.finfo(hidden.dtype).min,
                output_attentions=False,
                **given,
            )
            boxes = move(boxes, head(hidden)).detach()
            normed.append(self.layer_norm(hidden))
            moved.append(boxes)
        return SimpleNamespace(
            last_hidden_state=normed[-1],
            intermediate_hidden_states=torch.stack(normed, dim=1),
            intermediate_reference_points=torch.stack(moved, dim=1),
            hidden_states=None,
            attentions=None,
        )


def last_boxes(net: nn.Module, out: Any) -> Tensor:
    """Return the boxes (B, Q, 4) of a detector's output: those before the last layer, moved by its head.

    The output's own `pred_boxes` are `transformers`'. The head reads normalised queries here.
    """
    before = torch.cat([out.init_reference_points[:, None], out.intermediate_reference_points], dim=1)[:, -2]
    head = cast(Any, net).bbox_embed[-1]
    return move(before, head(out.intermediate_hidden_states[:, -1]))


def move(boxes: Tensor, by: Tensor) -> Tensor:
    """Add `by` to the log-odds of boxes, which are limited as in GroundingDINO's `util/misc.py`.

    `inverse_sigmoid` there takes 0.001 for a smaller coordinate, and for a smaller rest to 1.
    """
    odds = boxes.clamp(min=1e-3) / (1 - boxes).clamp(min=1e-3)
    return (odds.log() + by).sigmoid()


def sines(boxes: Tensor, width: int) -> Tensor:
    """Return waves of each coordinate of boxes (..., 4) as `width` numbers, in the order y, x, w, h.

    `gen_sineembed_for_position` in GroundingDINO's `models/GroundingDINO/utils.py`: (..., 4 * width).
    """
    steps = torch.arange(width, dtype=torch.float32, device=boxes.device)
    waves = 10000 ** (2 * torch.div(steps, 2, rounding_mode="floor") / width)
    angles = boxes[..., [1, 0, 2, 3], None] * (2 * math.pi) / waves
    both = torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1)
    return both.flatten(-3).to(boxes.dtype)
