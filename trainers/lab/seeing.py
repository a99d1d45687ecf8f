"""How a vision transformer too small for its task is helped to see: a start, and something to aim at."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from rewardzoo.trainers.lab.pair_batches import KINDS, Pairs
from rewardzoo.trainers.lab.scene import MAX_COUNT


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

    def loss(self, patches: Tensor, pooled: Tensor, batch: Pairs) -> Tensor:
        """Cross-entropy of cells and counts, squared error of places: patches (B, G*G, D), pooled (B, E)."""
        cells = F.cross_entropy(self.cells(patches).flatten(0, 1), batch.cells.flatten())
        counts = F.cross_entropy(
            self.counts(pooled).view(-1, MAX_COUNT + 1), batch.counts.flatten(), reduction="sum"
        )
        there = batch.counts > 0
        places = self.centers(pooled).view(*there.shape, 2)[there] - batch.centers[there]
        return torch.stack([cells, counts / there.sum(), 10 * places.square().sum(-1).mean()]).sum()


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
