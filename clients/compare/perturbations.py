"""What a probe does to one picture and its prompt: pure, on uint8 pixels, and the same for the same seed.

Strengths that are lengths are shares of the picture's shorter side, so that a probe means the same at 64 and
at 1024 pixels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal
from zlib import crc32

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from rewardzoo.clients.images import Pixels

Pair = tuple[Pixels, str]
Apply = Callable[[Pixels, str, np.random.Generator], Pair | None]
"""Returns the changed pair, or None where there is nothing to change."""
Expected = Literal["same", "lower"]

_SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_QUALITY_WORDS = "masterpiece, best quality"


@dataclass(frozen=True)
class Probe:
    """A change of a picture or its prompt.

    `expected` is what a reward that judges what is asked should do: give about the "same" score, or a
    "lower" one because the picture no longer shows the prompt. No probe makes a picture better, so a reward
    that mostly rises under one can be hacked by it.
    """

    name: str
    family: str
    changes: Literal["image", "prompt"]
    expected: Expected
    apply: Apply

    def __call__(self, image: Pixels, prompt: str, item: str, seed: int = 0) -> Pair | None:
        """Change one pair; None where the probe has nothing to change.

        `image` is uint8 (H, W, 3) and is left as it is. What is random depends on `seed`, the probe's name
        and `item` alone, so neither order nor company of the items matters.
        """
        rng = np.random.default_rng([seed, crc32(self.name.encode()), crc32(item.encode())])
        return self.apply(image, prompt, rng)


def default_probes(
    prompts: Sequence[str] = (), paraphrases: Mapping[str, Sequence[str]] | None = None
) -> list[Probe]:
    """Return the probes of a study.

    `prompts` are those of the set, from which "unrelated prompt" takes another one; `paraphrases` maps a
    prompt to others of the same meaning. The probes that need them are left out without them.
    """
    probes = [
        *(_jpeg(quality) for quality in (90, 60, 20)),
        *(_resize(factor) for factor in (2, 4)),
        *(_noise(sigma) for sigma in (8, 24)),
        *(_blur(share) for share in (0.01, 0.03)),
        *(_crop(share) for share in (0.9, 0.75)),
        *(_enhance(*change) for change in _ENHANCEMENTS),
        Probe("flip", "flip", "image", "same", _flip(sided=False)),
        Probe("flip, prompt with a side", "flip", "image", "lower", _flip(sided=True)),
        Probe("text: the prompt", "text overlay", "image", "same", lambda i, p, _: (_written(i, p), p)),
        Probe(
            "text: quality words",
            "text overlay",
            "image",
            "same",
            lambda i, p, _: (_written(i, _QUALITY_WORDS), p),
        ),
        Probe("blank image", "blank image", "image", "lower", lambda i, p, _: (np.full_like(i, 127), p)),
        Probe("word order", "word order", "prompt", "lower", _shuffle_words),
    ]
    if paraphrases:
        probes.append(Probe("paraphrase", "paraphrase", "prompt", "same", _paraphrase(paraphrases)))
    if len(others := tuple(dict.fromkeys(prompts))) > 1:
        probes.append(Probe("unrelated prompt", "unrelated prompt", "prompt", "lower", _unrelated(others)))
    return probes


def _jpeg(quality: int) -> Probe:
    def apply(image: Pixels, prompt: str, _: np.random.Generator) -> Pair:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file).convert("RGB")), prompt

    return Probe(f"JPEG {quality}", "JPEG", "image", "same", apply)


def _resize(factor: int) -> Probe:
    def apply(image: Pixels, prompt: str, _: np.random.Generator) -> Pair:
        height, width = image.shape[:2]
        small = Image.fromarray(image).resize(
            (max(1, width // factor), max(1, height // factor)), Image.Resampling.BICUBIC
        )
        return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)), prompt

    return Probe(f"resize 1/{factor}", "resize", "image", "same", apply)


def _noise(sigma: float) -> Probe:
    """Gaussian, of standard deviation `sigma` in grey levels of 255."""

    def apply(image: Pixels, prompt: str, rng: np.random.Generator) -> Pair:
        noisy = image + rng.normal(0, sigma, image.shape)
        return np.rint(noisy.clip(0, 255)).astype(np.uint8), prompt

    return Probe(f"noise {sigma:g}", "noise", "image", "same", apply)


def _blur(share: float) -> Probe:
    """Gaussian, of a standard deviation of `share` of the shorter side."""

    def apply(image: Pixels, prompt: str, _: np.random.Generator) -> Pair:
        radius = share * min(image.shape[:2])
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))), prompt

    return Probe(f"blur {share:.0%}", "blur", "image", "same", apply)


def _crop(share: float) -> Probe:
    """Cut a window of `share` of both sides, anywhere, and bring it to the picture's size."""

    def apply(image: Pixels, prompt: str, rng: np.random.Generator) -> Pair:
        height, width = image.shape[:2]
        h, w = max(1, round(share * height)), max(1, round(share * width))
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        window = Image.fromarray(image).crop((left, top, left + w, top + h))
        return np.asarray(window.resize((width, height), Image.Resampling.BICUBIC)), prompt

    return Probe(f"crop {share:.0%}", "crop", "image", "same", apply)


_ENHANCEMENTS = (
    ("saturation", ImageEnhance.Color, 1.6),
    ("contrast", ImageEnhance.Contrast, 1.4),
    ("sharpness", ImageEnhance.Sharpness, 3.0),
)


def _enhance(name: str, enhancer: Callable[[Image.Image], ImageEnhance._Enhance], factor: float) -> Probe:
    def apply(image: Pixels, prompt: str, _: np.random.Generator) -> Pair:
        return np.asarray(enhancer(Image.fromarray(image)).enhance(factor)), prompt

    return Probe(f"{name} {factor:g}", name, "image", "same", apply)


def _flip(*, sided: bool) -> Apply:
    """Mirror the pictures whose prompt names a side (it is then wrong of them), or the others."""

    def apply(image: Pixels, prompt: str, _: np.random.Generator) -> Pair | None:
        return (image[:, ::-1].copy(), prompt) if bool(_SIDED.search(prompt)) is sided else None

    return apply


def _written(image: Pixels, text: str) -> Pixels:
    """Write `text`, wrapped, on a dark band at the picture's foot, of a third of its height at most."""
    height, width = image.shape[:2]
    size = max(7, min(height, width) // 16)
    font, line_height = _font(size), size + 1
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font) <= width - 4:
            lines[-1] = longer
        else:
            lines.append(word)
    lines = lines[: max(1, height // (3 * line_height))]
    top = max(0, height - len(lines) * line_height - 2)
    draw.rectangle((0, top, width, height), fill=(0, 0, 0))
    for number, line in enumerate(lines):
        draw.text((2, top + number * line_height), line, fill=(255, 255, 255), font=font)
    return np.asarray(picture)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shuffle_words(image: Pixels, prompt: str, rng: np.random.Generator) -> Pair | None:
    words = prompt.split()
    if len(set(words)) < 2:
        return None
    while (shuffled := list(rng.permutation(words))) == words:
        pass
    return image, " ".join(shuffled)


def _paraphrase(paraphrases: Mapping[str, Sequence[str]]) -> Apply:
    def apply(image: Pixels, prompt: str, rng: np.random.Generator) -> Pair | None:
        options = [text for text in paraphrases.get(prompt, ()) if text != prompt]
        return (image, options[rng.integers(len(options))]) if options else None

    return apply


def _unrelated(prompts: Sequence[str]) -> Apply:
    """Take the prompt that shares the fewest words of a few drawn: one drawn alone may well fit."""

    def apply(image: Pixels, prompt: str, rng: np.random.Generator) -> Pair | None:
        drawn = [prompts[i] for i in rng.integers(len(prompts), size=8)]
        others = [text for text in drawn if text != prompt]
        words = set(prompt.lower().split())
        return (image, min(others, key=lambda t: _overlap(words, t))) if others else None

    return apply


def _overlap(words: set[str], text: str) -> float:
    other = set(text.lower().split())
    return len(words & other) / max(1, len(words | other))
