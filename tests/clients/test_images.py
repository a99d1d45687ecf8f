from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from rewardzoo.clients import images
from rewardzoo.clients.images import as_payload, decode_image
from rewardzoo.errors import ItemError

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
CHW = RGB.transpose(2, 0, 1).copy()


def encoded(kind: str = "PNG", image: Image.Image | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    (image or Image.fromarray(RGB)).save(out, kind, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RGB),
        Image.fromarray(np.dstack([RGB, np.zeros((5, 7), np.uint8)]), "RGBA"),
        RGB,
        np.dstack([RGB, np.zeros((5, 7), np.uint8)]),
        RGB.astype(np.float64) / 255,
        RGB.astype(np.float32) / 255,
        torch.from_numpy(CHW),
        torch.from_numpy(CHW) / 255,
        (torch.from_numpy(CHW) / 255).requires_grad_(),
        (torch.from_numpy(CHW) / 255).double(),
    ],
    ids=["pil", "pil-rgba", "uint8", "rgba", "f64", "f32", "t-uint8", "t-f32", "t-grad", "t-f64"],
)
def test_every_kind_of_pixels_gives_the_same_bytes(image: Any) -> None:
    payload = as_payload(image)
    assert isinstance(payload, np.ndarray)
    assert payload.dtype == np.uint8
    assert_array_equal(payload, RGB)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tensors_are_rounded_not_truncated(dtype: torch.dtype) -> None:
    tensor = (torch.from_numpy(CHW) / 255).to(dtype)
    expected = (tensor.float() * 255).round().byte().permute(1, 2, 0).numpy()
    assert_array_equal(as_payload(tensor), expected)


@pytest.mark.parametrize("grey", [RGB[:, :, 0], RGB[:, :, :1], torch.from_numpy(CHW[:1])])
def test_grey_images_are_repeated_to_rgb(grey: Any) -> None:
    assert_array_equal(as_payload(grey), np.repeat(RGB[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "CMYK", "YCbCr"])
def test_pil_images_of_any_mode_become_what_pil_makes_of_them(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    assert_array_equal(as_payload(image), np.asarray(image.convert("RGB")))


def test_floats_a_hair_outside_the_range_are_clamped() -> None:
    payload = as_payload(np.array([[[-0.0005, 0.5, 1.0005]]]))
    assert_array_equal(payload, [[[0, 128, 255]]])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_files_pass_as_they_are_and_decode_to_rgb(kind: str, tmp_path: Path) -> None:
    data = encoded(kind, **({"lossless": True} if kind == "WEBP" else {}))
    path = tmp_path / "image"
    path.write_bytes(data)
    assert as_payload(path) == as_payload(str(path)) == as_payload(data) == data
    assert_array_equal(decode_image(data), np.asarray(Image.open(path).convert("RGB")))


def test_orientation_in_exif_is_left_alone_as_upstream_does() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(exif=exif.tobytes())).shape == RGB.shape


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.full((2, 2, 3), np.nan), "12 of 12 pixel values are NaN or infinite"),
        (torch.tensor([[[0.5, float("inf")]]]), "1 of 2 pixel values are NaN or infinite"),
        (RGB.astype(np.float32), r"must be in \[0, 1\], got 0..248: divide by 255"),
        (np.array([[[-1.0, 0, 1]]]), r"got -1..1: map \[-1, 1\] with \(x \+ 1\) / 2"),
        (np.array([[[1.01] * 3]]), r"got 1.01..1.01"),
        (np.full((1, 1, 3), 1e300), "scale them"),
        (RGB.astype(np.int64), r"cannot be int64: give uint8 in 0..255 or floats in \[0, 1\]"),
        (torch.from_numpy(CHW).long(), "cannot be int64"),
        (RGB > 3, "cannot be bool"),
        (np.zeros((0, 0, 3), np.uint8), "the image is empty: 0x0 pixels"),
        (torch.zeros(3, 0, 4), "the image is empty: 4x0 pixels"),
        (Image.new("RGB", (0, 0)), "the image is empty: 0x0 pixels"),
        (np.zeros(3, np.uint8), r"2 or 3 dimensions, got 1: shape \(3,\)"),
        (RGB[None], "2 or 3 dimensions, got 4"),
        (CHW, r"\(H, W, C\) with C in 1, 3, 4; got \(3, 5, 7\); use .transpose\(1, 2, 0\)"),
        (torch.from_numpy(RGB), r"\(C, H, W\) .*got \(5, 7, 3\); use .permute\(2, 0, 1\)"),
        (np.zeros((2, 2, 2), np.uint8), r"got \(2, 2, 2\)"),
        ("/nowhere/a.png", "cannot read the image file '/nowhere/a.png'.*No such file"),
        ("bad\0name", "cannot read the image file"),
        ("https://example.org/a.png", "URLs are not fetched, download it first"),
        (b"", "it starts with nothing at all"),
        (b"GIF89a......", "a PNG, JPEG or WebP file was expected, it starts with b'GIF89a"),
        (None, "cannot be of type NoneType: give a PIL image"),
        (png_header(20_000, 20_000), "400000000 pixels.*takes up to 64,000,000"),
        (png_header(8_000, 8_001), "8000x8001, 64,008,000 pixels; the limit is 64,000,000"),
        (encoded()[:20], "truncated or damaged PNG"),
        (encoded("WEBP")[:40], "truncated or damaged WEBP"),
    ],
)
def test_what_is_not_an_image_is_refused_with_the_way_out(image: Any, says: str) -> None:
    with pytest.raises(ItemError, match=says):
        as_payload(image)


def test_a_huge_pil_image_is_refused_before_it_is_converted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 34)
    with pytest.raises(ItemError, match="7x5, 35 pixels; the limit is 34"):
        as_payload(Image.fromarray(RGB))


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match="cannot read the image file"):
        as_payload(tmp_path)


def test_a_truncated_file_opened_with_pil_is_an_item_error(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    path.write_bytes(encoded()[:-30])
    with pytest.raises(ItemError, match="has no pixels"):
        as_payload(Image.open(path))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_truncation_passes_decoding_as_an_item_error_or_whole(kind: str) -> None:
    data = encoded(kind, Image.effect_noise((32, 32), 60).convert("RGB"))
    whole = decode_image(data)
    refused = 0
    for end in range(len(data)):
        try:
            # A file that lost only its end mark still has all of its pixels.
            assert_array_equal(decode_image(data[:end]), whole)
        except ItemError as error:
            refused += "truncated or damaged" in str(error)
    assert refused > len(data) * 0.9


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ItemError, match="64,000,000"):
        decode_image(png_header(20_000, 20_000))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_a_channel_is_refused_and_not_clipped(mode: str) -> None:
    image = Image.new(mode, (4, 4))
    with pytest.raises(ItemError, match="8 bits"):
        as_payload(image)
    if mode == "I;16":
        file = io.BytesIO()
        image.save(file, format="PNG")
        with pytest.raises(ItemError, match="8 bits"):
            decode_image(file.getvalue())
