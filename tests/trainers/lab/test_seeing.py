import pytest
import torch
from torch import nn

from rewardzoo.trainers.lab.pair_batches import KINDS, PairStream
from rewardzoo.trainers.lab.seeing import ReadingProbe, look_around
from rewardzoo.trainers.lab.training import GRID, SIZE

WORDS = {"<pad>": 0, "two": 1, "red": 2, "blue": 3, "circles": 4, "square": 5}


def test_the_reading_probe_asks_at_each_kind_for_its_place_and_number_in_the_picture_shown() -> None:
    batch = next(iter(PairStream(16, 0, SIZE, GRID)))
    red_circle, blue_square = KINDS.index(("red", "circle")), KINDS.index(("blue", "square"))
    picture = torch.arange(32)
    ids = torch.tensor([[1, 2, 4, 0], [0, 3, 5, 2]]).repeat(16, 1)  # "two red circles", "blue square red"
    kinds = torch.tensor([red_circle, blue_square]).repeat(16)
    counts, centers = batch.counts[picture, kinds], batch.centers[picture, kinds]
    assert (counts > 0).any()
    layer = nn.Identity()
    probe = ReadingProbe(3, 6, WORDS, places=layer, counts=layer)
    # What is written at the second token of a kind is its place and number: the probe reads it off.
    hidden = torch.zeros(32, 4, 3)
    hidden[:, 2] = torch.cat([centers.nan_to_num(), counts[:, None]], 1)
    with torch.no_grad():
        for linear in (probe.places, probe.counts):
            linear.weight.zero_()
            linear.bias.zero_()
        probe.places.weight[:, :2] = torch.eye(2)
        probe.counts.weight[:, 2] = 100 * torch.arange(5.0)
        probe.counts.bias.copy_(-50 * torch.arange(5.0).square())  # highest at the number that was read
    layer(hidden)
    assert probe.loss(ids, picture, batch).item() == pytest.approx(0, abs=1e-4)
    layer(hidden.flip(0))
    assert probe.loss(ids, picture, batch) > 0.1


def test_heads_look_around_at_the_patch_below_above_right_and_left() -> None:
    width, grid = 96, 8
    frequencies = 100 ** -(torch.arange(width // 16) / (width // 16))
    bias = torch.zeros(3 * width)
    look_around([bias], frequencies)
    query, key, value = bias.view(3, 4, width // 4)
    assert not value.any()
    y, x = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(grid)] * 2, indexing="ij"))
    angles = torch.cat([y[:, None] * frequencies, x[:, None] * frequencies], 1)

    def turned(vector: torch.Tensor) -> torch.Tensor:  # as `transformers` turns queries and keys
        first, second = vector.chunk(2)
        sin, cos = angles.sin(), angles.cos()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], 1)

    middle = 4 * grid + 4
    for head, (down, right) in enumerate([(1, 0), (-1, 0), (0, 1), (0, -1)]):
        logits = turned(query[head])[middle] @ turned(key[head]).T / (width // 4) ** 0.5
        best, second = logits.topk(2).values
        assert logits.argmax() == middle + down * grid + right
        assert best - second > 1
