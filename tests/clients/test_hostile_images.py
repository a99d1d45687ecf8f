"""Files made to cost a decoder more than they weigh, or to be read as what they are not."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from rewardzoo.clients.images import check_file, decode_image
from rewardzoo.errors import ItemError

FRAMES = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]


def saved(kind: str, image: Image.Image = FRAMES[0], **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes) -> bytes:
    """A red PNG with chunks of our own between its header and its pixels."""
    plain = saved("PNG")
    end = 8 + 25  # behind the signature and IHDR
    return plain[:end] + b"".join(chunks) + plain[end:]


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG of 16x16 pixels that announces another size."""
    data = bytearray(saved("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_canvas(width: int, height: int, *, animated: bool) -> bytes:
    """A WebP with a canvas of any size and two frames of 16x16 pixels."""

    def riff(kind: bytes, data: bytes) -> bytes:
        return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)

    def u24(value: int) -> bytes:
        return struct.pack("<I", value)[:3]

    pixels = saved("WEBP", lossless=True)[12:]
    frame = riff(b"ANMF", bytes(6) + u24(15) + u24(15) + u24(100) + b"\0" + pixels)
    head = riff(b"VP8X", bytes([2 * animated, 0, 0, 0]) + u24(width - 1) + u24(height - 1))
    body = b"WEBP" + head + (riff(b"ANIM", bytes(6)) + frame * 2 if animated else pixels)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def scans(count: int) -> bytes:
    """A progressive JPEG of 2000x2000 pixels that ends with so many scans of next to no data."""
    data = saved("JPEG", Image.new("RGB", (2000, 2000), "red"), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def text_bomb(kind: bytes, size: int = 2**21) -> bytes:
    packed = zlib.compress(bytes(size), 9)
    return chunk(kind, b"k\0\1\0\0\0" + packed if kind == b"iTXt" else b"k\0\0" + packed)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jpeg_of_size(65_535, 65_535), "64,000,000"),
        (lambda: jpeg_of_size(10_000, 10_000), "10000x10000, 100,000,000 pixels"),
        (lambda: webp_canvas(16_383, 16_383, animated=True), "64,000,000"),
        (lambda: webp_canvas(9_000, 9_000, animated=True), "9000x9000, 81,000,000 pixels"),
        (lambda: webp_canvas(9_000, 9_000, animated=False), "damaged WEBP|81,000,000"),
        (lambda: saved("WEBP", save_all=True, append_images=FRAMES[1:]), "WEBP file is an animation"),
        (lambda: saved("PNG", save_all=True, append_images=FRAMES[1:]), "PNG file is an animation"),
        (lambda: scans(101), r"has 1\d\d scans, the limit is 100"),
        (lambda: png_with(text_bomb(b"zTXt")), "damaged PNG"),
        (lambda: png_with(text_bomb(b"iTXt")), "damaged PNG"),
        (lambda: png_with(*[text_bomb(b"zTXt", 2**20 - 1)] * 70), "damaged PNG"),
        (lambda: png_with(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2**22), 9))), "damaged PNG"),
        (lambda: saved("PNG")[:-40], "damaged PNG"),
        (lambda: saved("JPEG")[:200], "damaged JPEG"),
        (lambda: b"\xff\xd8\xff" + bytes(100), "damaged JPEG"),
        (lambda: b"RIFF\xff\xff\xff\xffWEBPVP8 ", "damaged WEBP"),
        (lambda: saved("GIF"), "PNG, JPEG or WebP"),
        (lambda: saved("TIFF"), "PNG, JPEG or WebP"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "PNG, JPEG or WebP"),
        (lambda: b"RIFF" + bytes(4) + b"WAVE", "PNG, JPEG or WebP"),
    ],
)
def test_it_is_refused_in_a_moment(make: Callable[[], bytes], says: str) -> None:
    data = make()
    start = time.perf_counter()
    with pytest.raises(ItemError, match=says):
        decode_image(data)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "data",
    [
        png_with(chunk(b"eXIf", b"MM\0*\0\0\0\x08" + b"\xff" * 64)),  # a directory of nonsense
        png_with(text_bomb(b"zTXt", 1000)),
        saved("PNG", exif=b"Exif\0\0" + b"\xff" * 200),
        saved("PNG") + b"anything behind the end",
    ],
    ids=["bad EXIF", "text", "EXIF of nonsense", "trailing bytes"],
)
def test_what_stands_beside_the_pixels_does_not_matter(data: bytes) -> None:
    np.testing.assert_array_equal(decode_image(data), np.asarray(FRAMES[0]))


def test_pixels_that_go_on_behind_the_last_row_are_not_inflated() -> None:
    row = b"\0" + b"\xff\0\0" * 16
    head = saved("PNG")[: 8 + 25]
    pixels = zlib.compress(row * 16 + bytes(50_000_000), 9)
    start = time.perf_counter()
    image = decode_image(head + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    assert time.perf_counter() - start < 0.1
    np.testing.assert_array_equal(image, np.asarray(FRAMES[0]))


def test_an_interlaced_png_has_the_pixels_of_a_plain_one() -> None:
    # Adam7 of a picture in one colour: seven passes, each a smaller picture.
    passes = [(2, 2), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8), (16, 8)]
    rows = b"".join((b"\0" + b"\xff\0\0" * width) * height for width, height in passes)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 1))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode_image(data), np.asarray(FRAMES[0]))


def test_a_progressive_jpeg_as_encoders_write_it_is_decoded() -> None:
    assert decode_image(scans(50)).shape == (2000, 2000, 3)


def test_a_photo_with_further_pictures_behind_it_is_its_first_picture() -> None:
    data = saved("MPO", save_all=True, append_images=FRAMES[1:])
    np.testing.assert_allclose(decode_image(data), np.asarray(FRAMES[0]), atol=3)


def test_a_limit_of_ones_own_comes_before_the_packages() -> None:
    with pytest.raises(ItemError, match="16x16, 256 pixels; the limit is 255"):
        check_file(saved("PNG"), max_pixels=255)
    check_file(saved("PNG"), max_pixels=256)
