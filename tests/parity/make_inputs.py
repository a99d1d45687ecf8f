"""Draw the pictures of tests/parity/inputs and write pairs.json beside them: PIL and numpy, fixed seeds.

    python tests/parity/make_inputs.py [--out tests/parity/inputs]

The files are committed: fixtures hold upstream's scores of these very files, so drawing them anew, with
another Pillow for instance, calls for new fixtures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

LONG = (
    "a highly detailed oil painting of a small harbour town at dawn, red and ochre houses climbing the hill, "
    "wooden fishing boats rocking in calm green water, gulls over the masts, a woman in a blue coat carrying "
    "a basket of lemons along the quay, two children chasing a brown dog, a lighthouse with a white and red "
    "tower in the distance, soft volumetric light, long shadows, visible brush strokes, muted palette, "
    "wide angle composition, award winning, 8k, trending"
)

PAIRS = (
    ("square.png", "a red circle left of a blue square"),
    ("square.png", "two green triangles above a yellow star"),
    ("wide.png", "a red circle left of a blue square"),
    ("tall.png", "A tall lighthouse, at night."),
    ("odd.png", "a photo of a cat"),
    ("dot.png", "a single pixel"),
    ("panorama.png", "a panorama of mountains under a wide sky"),
    ("thread.png", "a very narrow waterfall"),
    ("line.png", "the horizon"),
    ("rgba.png", "a glass of water with transparent edges"),
    ("grey.png", "a black and white photograph of an old man"),
    ("grey_alpha.png", "fog"),
    ("palette.png", "pixel art of a castle, 16 colours"),
    ("palette_clear.png", "a sticker of a fox"),
    ("bits.png", "a QR code"),
    ("cmyk.jpg", "a magazine print of a parrot"),
    ("photo.jpg", "a sunset over the sea, golden hour"),
    ("turned.jpg", "a camera held upside down"),
    ("photo.webp", "a bowl of fruit on a wooden table"),
    ("large.png", "an astronaut riding a horse on the moon"),
    ("portrait.png", "portrait of a queen"),
    ("noise.png", "television static"),
    ("stripes.png", "a zebra in front of a picket fence"),
    ("black.png", "nothing at all"),
    ("tiny.png", "dog"),
    ("large.png", ""),
    ("rgba.png", "   \t "),
    ("portrait.png", LONG),
    ("photo.jpg", " ".join([LONG] * 4)),
    ("square.png", "red " * 120),
    ("palette.png", "一只戴着红色帽子的猫坐在窗台上"),
    ("tall.png", "🐱 chasing a 🦋 in the garden ❤️‍🔥"),
    ("wide.png", "Cafe\u0301 a\u0300 Zu\u0308rich, naïve façade, Ελληνικά, русский, עברית, हिन्दी"),
    ("photo.webp", 'a sign that says "OPEN 24/7" and a cat\'s “smile”'),
    ("stripes.png", "first line\nsecond line\r\n\n\ta tabbed line "),
    ("grey.png", "salt &amp; pepper, A&B, &lt;b&gt;bold&lt;/b&gt; <i>text</i>"),
    ("odd.png", "a PhOtO oF NeW yOrK CiTy IN THE RAIN"),
    ("noise.png", "wow!!! ... what?! --- (really) [yes] {no} #1 @home 50% $3.50 a_b*c^d~e|f\\g"),
    ("large.png", "an astronaut riding a horse on the moon, <|endoftext|> [SEP] </s> %s {} {0}"),
)


def scene(width: int, height: int, seed: int) -> Image.Image:
    """Return a smooth sky with some shapes in it."""
    rng = np.random.default_rng(seed)
    x, y = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
    start, across, down = rng.integers(40, 216, (3, 3))
    sky = start + (across - start) * 0.7 * x + (down - start) * 0.7 * y
    image = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for kind in ("ellipse", "rectangle", "line", "ellipse", "polygon"):
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        left, right = sorted(int(v) for v in rng.integers(0, width, 2))
        top, bottom = sorted(int(v) for v in rng.integers(0, height, 2))
        if kind == "line":
            draw.line((left, top, right, bottom), fill=colour, width=max(1, min(width, height) // 20))
        elif kind == "polygon":
            draw.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=colour)
        else:
            getattr(draw, kind)((left, top, right, bottom), fill=colour)
    return image


def with_alpha(image: Image.Image) -> Image.Image:
    """Return `image` with an alpha that runs from clear to opaque and a clear hole."""
    width, height = image.size
    alpha = np.tile(np.linspace(0, 255, width), (height, 1)).astype(np.uint8)
    alpha[height // 3 : height // 2, width // 3 : width // 2] = 0
    out = image.copy()
    out.putalpha(Image.fromarray(alpha))
    return out


def stripes(width: int, height: int) -> Image.Image:
    """Return stripes and checks of one to three pixels: what antialiasing decides."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([(x // 2) % 2, (y // 3 + x) % 2, (x * x // 64 + y) % 2], -1) * 255
    return Image.fromarray(pixels.astype(np.uint8))


def palette(width: int, height: int, seed: int) -> Image.Image:
    """Return a picture of 16 colours."""
    return scene(width, height, seed).quantize(16, dither=Image.Dither.NONE)


def turned() -> tuple[Image.Image, dict[str, object]]:
    """Return a JPEG whose EXIF says that it was taken upside down; upstream loaders do not heed it."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return scene(180, 240, 16), {"quality": 90, "exif": exif}


def draw() -> dict[str, tuple[Image.Image, dict[str, object]]]:
    """Return each file's picture and how it is saved."""
    noise = np.random.default_rng(9).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    clear = palette(140, 100, 12)
    made: dict[str, Callable[[], Image.Image]] = {
        "square.png": lambda: scene(224, 224, 0),
        "wide.png": lambda: scene(224, 112, 1),
        "tall.png": lambda: scene(112, 224, 2),
        "odd.png": lambda: scene(223, 225, 3),
        "dot.png": lambda: Image.new("RGB", (1, 1), (200, 30, 90)),
        "panorama.png": lambda: scene(4096, 256, 4),
        "thread.png": lambda: scene(3, 1000, 5),
        "line.png": lambda: scene(300, 5, 6),
        "rgba.png": lambda: with_alpha(scene(200, 150, 7)),
        "grey.png": lambda: scene(160, 120, 8).convert("L"),
        "grey_alpha.png": lambda: with_alpha(scene(90, 130, 10).convert("L")),
        "palette.png": lambda: palette(128, 96, 11),
        "bits.png": lambda: scene(100, 100, 13).convert("1", dither=Image.Dither.NONE),
        "large.png": lambda: scene(768, 512, 17),
        "portrait.png": lambda: scene(512, 768, 18),
        "noise.png": lambda: Image.fromarray(noise),
        "stripes.png": lambda: stripes(500, 333),
        "black.png": lambda: Image.new("RGB", (64, 64)),
        "tiny.png": lambda: scene(14, 10, 19),
    }
    return {
        **{name: (make(), {"optimize": True}) for name, make in made.items()},
        "palette_clear.png": (clear, {"optimize": True, "transparency": 0}),
        "cmyk.jpg": (scene(120, 160, 14).convert("CMYK"), {"quality": 90}),
        "photo.jpg": (scene(320, 200, 15), {"quality": 90}),
        "turned.jpg": turned(),
        "photo.webp": (scene(250, 190, 20), {"quality": 90}),
    }


def main() -> None:
    """Write the pictures and pairs.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "inputs")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, (image, options) in draw().items():
        image.save(out / name, **options)
    rows = [{"image": image, "prompt": prompt} for image, prompt in PAIRS]
    (out / "pairs.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
