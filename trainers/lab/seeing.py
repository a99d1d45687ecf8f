"""How a vision transformer too small for its task is helped to see: a start, and something to aim at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from rewardzoo.trainers.lab.pair_batches import KINDS, Layouts, Pairs
from rewardzoo.trainers.lab.prompts import PLURALS
from rewardzoo.trainers.lab.scene import COLORS, MAX_COUNT, SHAPES

SHARPNESS = 15.0
"""How much more `look_around` makes a patch attend to one than to that one's neighbours: a logit of 1.5."""


class SceneProbe(nn.Module):
    """Reads off an image encoder what is where, so that it learns to see before it learns to judge.

    Stands in for the pre-training on billions of pictures that the big models start from. It is trained with
    the encoder through the first half and thrown away. `cells` reads the patches, `counts` and
    `centers` the pooled image.
    """

    def __init__(self, patch_width: int, pooled_width: int) -> None:
        super().__init__()
        self.cells = nn.Linear(patch_width, len(KINDS) + 1)
        self.counts = nn.Linear(pooled_width, len(KINDS) * (MAX_COUNT + 1))
        self.centers = nn.Linear(pooled_width, len(KINDS) * 2)

    def loss(self, patches: Tensor, pooled: Tensor, batch: Layouts) -> Tensor:
        """Cross-entropy of cells and counts, squared error of places: patches (B, G*G, D), pooled (B, E)."""
        there = batch.counts > 0
        places = self.centers(pooled).view(*there.shape, 2)[there] - batch.centers[there]
        loss: Tensor = self.contents(patches, pooled, batch) + 10 * places.square().sum(-1).mean()
        return loss

    def contents(self, patches: Tensor, pooled: Tensor, batch: Layouts) -> Tensor:
        """The same without the places, of an encoder whose pooled image knows none."""
        cells = F.cross_entropy(self.cells(patches).flatten(0, 1), batch.cells.flatten())
        counts = F.cross_entropy(
            self.counts(pooled).view(-1, MAX_COUNT + 1), batch.counts.flatten(), reduction="sum"
        )
        return cells + counts / (batch.counts > 0).sum()


class ReadingProbe(nn.Module):
    """Reads off a text encoder, at each "red circle", where in the picture such things are and how many.

    So it learns to look up what a word means in the picture before it learns to judge: that one thing is left
    of another is seen from two places, and from one verdict on all of a prompt hardly to be found out.
    Trained with the encoder and thrown away, as `SceneProbe` is.

    `places` and `counts` are the layers after which they should be known, `words` the ids of
    the vocabulary, and `tokens` how many ids there are.
    """

    def __init__(
        self, width: int, tokens: int, words: Mapping[str, int], *, places: nn.Module, counts: nn.Module
    ) -> None:
        super().__init__()
        self.places = nn.Linear(width, 2)
        self.counts = nn.Linear(width, MAX_COUNT + 1)
        self.colors, self.shapes = torch.full((2, tokens), -1)
        for word, token in words.items():
            bare = word
            for k, color in enumerate(COLORS):
                if bare == color:
                    self.colors[token] = k
            for k, shape in enumerate(SHAPES):
                if bare in (shape, PLURALS[shape]):
                    self.shapes[token] = k
        self._read: dict[str, Tensor] = {}
        for name, layer in (("places", places), ("counts", counts)):
            layer.register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        self._read[name] = output[0] if isinstance(output, tuple) else output

    def mentions(self, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where in tokens (B, L) kinds are named, at their shape: row, place and kind of each, in order."""
        color, shape = self.colors[input_ids[:, :-1]], self.shapes[input_ids[:, 1:]]
        row, place = ((color >= 0) & (shape >= 0)).nonzero().unbind(1)
        return row, place + 1, color[row, place] * len(SHAPES) + shape[row, place]

    def loss(self, input_ids: Tensor, picture: Tensor, batch: Pairs) -> Tensor:
        """Loss of what was just read: tokens (B, L), each row with the picture (B,) of a batch."""
        row, place, kind = self.mentions(input_ids)
        counts, centers = (known[picture[row], kind] for known in (batch.counts, batch.centers))
        at = {name: hidden[row, place].float() for name, hidden in self._read.items()}
        there = counts > 0
        wrong = (self.places(at["places"]) - centers)[there].square().sum(-1).mean()
        loss: Tensor = 10 * wrong + F.cross_entropy(self.counts(at["counts"]).float(), counts)
        return loss


@torch.no_grad()
def look_nearby(places: Tensor, attention: Iterable[Tensor], grid: int) -> None:
    """Start a vision tower with patches that know their place and attend to their neighbours.

    Sine waves as `places` (grid * grid, D), and equal queries and keys in the `attention` weights (3 D, D).
    From a plain start so small a transformer spends most of its training finding out which patches touch.
    """
    turns = torch.pi * torch.logspace(0, -1, places.shape[1] // 4)
    at = 4 * torch.arange(grid) / grid
    y, x = (axis.flatten()[:, None] * turns for axis in torch.meshgrid(at, at, indexing="ij"))
    places.copy_(torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1))
    for weight in attention:
        query, key, _ = weight.chunk(3)
        key.copy_(query)


@torch.no_grad()
def look_around(biases: Iterable[Tensor], frequencies: Tensor) -> None:
    """Start a vision tower with rotary places so that its four heads look below, above, right and left.

    The same for towers that know places by rotation as `look_nearby` for those that add them: in the biases
    of queries, keys and values (3 D), queries are keys turned by as much as a patch further is. `frequencies`
    (D / 16) are the rotation's, by rows and by columns alike.
    """
    ways = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    for bias in biases:
        query, key, _ = bias.view(3, len(ways), -1)
        long = (SHARPNESS * frequencies).sqrt().repeat(2)
        for head, way in enumerate(ways):
            turn = (way[:, None] * frequencies).flatten()
            query[head] = torch.cat([long * turn.cos(), long * turn.sin()])
            key[head] = torch.cat([long, torch.zeros_like(long)])


def blip_vision_from_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the vision tower of an open_clip checkpoint to what `transformers`' BLIP calls the same weights.

    The two are one architecture where CLIP has no norm in front; BLIP's patch embedding has a bias besides.
    """
    places = state["visual.positional_embedding"]
    renamed = {
        "embeddings.class_embedding": state["visual.class_embedding"][None, None],
        "embeddings.position_embedding": places[None],
        "embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "embeddings.patch_embedding.bias": torch.zeros(places.shape[1]),
    }
    for key, weight in state.items():
        if key.startswith("visual.ln_post."):
            renamed[key.replace("visual.ln_post", "post_layernorm")] = weight
        elif key.startswith("visual.transformer.resblocks."):
            key = key.replace("visual.transformer.resblocks", "encoder.layers")
            for theirs, ours in _CLIP_TO_BLIP.items():
                key = key.replace(theirs, ours)
            renamed[key] = weight
    return renamed


_CLIP_TO_BLIP = {
    "attn.in_proj_": "self_attn.qkv.",
    "attn.out_proj": "self_attn.projection",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
