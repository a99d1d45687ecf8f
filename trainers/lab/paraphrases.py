"""Other prompts for the same scene, by the grammar that wrote the first."""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

import numpy as np

from rewardzoo.trainers.lab.prompts import parse_prompt, prompt_of

_TRIES = 40


def paraphrases(prompts: Iterable[str], n: int = 4, seed: int = 0) -> dict[str, list[str]]:
    """Return, for each prompt, up to `n` others that say the same, the same ones for the same seed.

    A prompt of either split is paraphrased in the long style, whose words it may not have had.

    Raises:
        ValueError: a prompt outside the grammar.
    """
    found = {}
    for prompt in dict.fromkeys(prompts):
        scene = parse_prompt(prompt)
        rng = np.random.default_rng([seed, crc32(prompt.encode())])
        written = (prompt_of(scene, rng=rng) for _ in range(_TRIES))
        found[prompt] = [text for text in dict.fromkeys(written) if text != prompt][:n]
    return found
