"""What the mini generator learns from: pictures of the lab as tokens, and captions, some of them wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.models.janus.modeling_janus import JanusVQVAE

from rewardzoo.trainers.lab.pairs import corrupt
from rewardzoo.trainers.lab.prompts import prompt_of
from rewardzoo.trainers.lab.scene import HELD_OUT, Scene
from rewardzoo.trainers.lab.scene_images import SceneImageStream
from rewardzoo.trainers.lab.vq import encode

CORRUPTED = 0.5
"""Share of captions, at the end of training, in which one statement of any category is false."""

SHORT = 0.15
"""Share of captions in the short style, of scenes with at most two entities."""


@dataclass(frozen=True)
class TokenizedScenes:
    """N pictures: their scenes, `tokens` (N, G * G), and `counts`, `centers`, `cells` as in `Layouts`."""

    scenes: list[Scene]
    tokens: Tensor
    counts: Tensor
    centers: Tensor
    cells: Tensor

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, rows: Tensor) -> TokenizedScenes:
        return TokenizedScenes(
            [self.scenes[row] for row in rows.tolist()],
            self.tokens[rows],
            self.counts[rows],
            self.centers[rows],
            self.cells[rows],
        )


def tokenize_scenes(vq: JanusVQVAE, n: int, seed: int, batch: int = 64) -> TokenizedScenes:
    """Draw `n` in-domain scenes and their pictures, `batch` at a time, and encode these."""
    batches = math.ceil(n / batch)
    stream = DataLoader(SceneImageStream(batch, seed), batch_size=None, num_workers=1, prefetch_factor=4)
    scenes: list[Scene] = []
    rows: list[tuple[Tensor, ...]] = []
    for images in track(islice(stream, batches), total=batches, description="tokens"):
        scenes += images.scenes
        rows.append((encode(vq, images.noisy), images.counts, images.centers, images.cells))
    return TokenizedScenes(scenes, *(torch.cat(parts) for parts in zip(*rows, strict=True)))[torch.arange(n)]


def caption_of(scene: Scene, rng: np.random.Generator, corrupted: float = CORRUPTED) -> str:
    """Write a caption of a picture of an in-domain scene, false in one statement in a share `corrupted`.

    None has a combination that is kept for out-of-domain prompts.
    """
    said = scene
    if rng.random() < corrupted:
        said = corrupt(scene, rng)
        while HELD_OUT.intersection(said.combinations):
            said = corrupt(scene, rng)
    short = len(said.entities) < 3 and rng.random() < SHORT
    return prompt_of(said, "short" if short else "compositional", rng)


def shuffled_batches(
    data: TokenizedScenes, batch: int, rng: np.random.Generator
) -> Iterator[TokenizedScenes]:
    """Yield batches without end, through the data in a new order each time."""
    while True:
        for rows in torch.split(torch.from_numpy(rng.permutation(len(data))), batch):
            if len(rows) == batch:
                yield data[rows]
