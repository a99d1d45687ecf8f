"""Spoiling bytes, files and JSON values."""

from __future__ import annotations

import io
import random
from typing import Any

from PIL import Image


def picture(rng: random.Random, kind: str) -> bytes:
    side = (rng.randint(1, 24), rng.randint(1, 24))
    mode = rng.choice(["RGB", "RGB", "L", "RGBA", "P", "1", "LA"])
    image = Image.effect_noise(side, 80).convert(mode)
    if kind != "PNG" and mode not in ("RGB", "L"):
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, kind, **({"progressive": rng.random() < 0.5} if kind == "JPEG" else {}))
    return file.getvalue()


def noise(rng: random.Random, data: bytes) -> bytes:
    """Spoil some bytes: flip, cut, repeat, insert."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                del out[at : at + rng.choice([1, 2, 4, 64])]
            case 2:
                out[at:at] = rng.randbytes(rng.choice([1, 4, 32]))
            case 3:
                out[at:at] = out[at : at + rng.choice([1, 8, 64])]
            case 4:
                del out[at:]
            case 5:
                out[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"])
    return bytes(out)


WEIRD = [
    None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, -(2**63), 10**400, 1e308, 0.5, float("nan"),
    float("inf"), "", "a", "images", "prompts", "UINT8", "BYTES", "FP64", "\ud800", "\0", "é" * 50,
    [], {}, [[]], [[1], [2, 3]], [-1], [0], [2**31 - 1] * 3, [2**31 - 1] * 20,
    {"binary_data_size": 3}, {"binary_data": "yes"}, {"shared_memory_region": "x"},
    {"classification": 3}, [{"name": "scores"}], [{"name": "nope"}], {"name": 1},
]  # fmt: skip


def spoil(rng: random.Random, value: Any) -> Any:
    """Replace, remove, double or add something somewhere in a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, rng.choice(["parameters", "inputs", "data", "id", "x"]): rng.choice(WEIRD)}
            case _:
                return {**value, key: spoil(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        match rng.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value + value[at : at + 1]
            case _:
                return [*value[:at], spoil(rng, value[at]), *value[at + 1 :]]
    return rng.choice(WEIRD)
