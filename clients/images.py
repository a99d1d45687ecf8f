"""Every accepted image as one of two lossless payloads: RGB pixels, or an encoded file as it is.

Nothing here resizes, rotates or re-encodes, so a score depends on the image and not on how it was
handed over. The service and the in-process scorer decode with `decode_image` as well.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewardzoo.errors import ItemError

Pixels = NDArray[np.uint8]
"""RGB, (H, W, 3)."""
Payload = Pixels | bytes
"""Pixels, or a PNG, JPEG or WebP file."""

MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP")
# libjpeg goes over all coefficients for each scan, so that 40 bytes cost 15 ms at 4000x4000 (measured);
# encoders write up to 10 or so.
_MAX_SCANS = 100
# A float image may leave [0, 1] by what bfloat16 and resampling do to a bound, and no more.
_TOLERANCE = 1e-3


@runtime_checkable
class TorchTensor(Protocol):
    """What is used of `torch.Tensor`, which is never imported."""

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> TorchTensor: ...

    def detach(self) -> TorchTensor:
        """Leave the graph."""

    def cpu(self) -> TorchTensor:
        """Move to the host."""

    def float(self) -> TorchTensor:
        """Convert to float32."""

    def is_floating_point(self) -> bool:
        """Say whether its dtype is a float, of any width."""

    def numpy(self) -> NDArray[Any]:
        """Share its memory as an array."""


ImageLike = Image.Image | NDArray[Any] | TorchTensor | str | Path | bytes
"""What `score` takes for one image; see `as_payload`."""


def as_payload(image: ImageLike) -> Payload:
    """Turn one image into pixels or encoded bytes, without loss.

    Accepted: a PIL image of any 8-bit mode (converted to RGB); an array (H, W, C) or (H, W) and a torch
    tensor (C, H, W) or (H, W), with C in 1, 3, 4 (alpha is dropped), uint8 or float in [0, 1];
    the path or the bytes of a PNG, JPEG or WebP file, which are passed on undecoded.

    Floats become uint8 by round(255 x), so that pixels k / 255 come back as k.

    Raises:
        ItemError: anything else; the message names the value and the way out.
    """
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, str | Path):
        return _checked_file(_read(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return _checked_file(bytes(image))
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, TorchTensor):
        return _from_tensor(image)
    raise ItemError(
        f"an image cannot be of type {type(image).__name__}: give a PIL image, an array (H, W, 3), "
        "a tensor (3, H, W), a path or the bytes of a file"
    )


def decode_image(data: bytes) -> Pixels:
    """Decode a PNG, JPEG or WebP file to RGB pixels (H, W, 3).

    Raises:
        ItemError: as `check_file`, or the file is truncated or damaged behind its header.
    """
    image = _open(data)
    _check_depth(image)
    try:
        return np.asarray(image.convert("RGB"))
    # Decoders fail in many ways on damaged input; each of them is this item's failure alone.
    except Exception as error:
        raise ItemError(f"truncated or damaged {image.format}: {error}") from error


def check_file(data: bytes, max_pixels: int | None = None) -> None:
    """Refuse a file by its header, before any pixel is decoded.

    Raises:
        ItemError: not a PNG, JPEG or WebP file, one of more than `max_pixels` (by default `MAX_PIXELS`)
            pixels or 8 bits a channel, an animation, or a damaged header.
    """
    _check_depth(_open(data, max_pixels))


def size_of(image: Payload) -> tuple[int, int]:
    """Width and height; of a file they are read from its head, nothing is decoded.

    Raises:
        ItemError: a file as `decode_image` refuses it.
    """
    if isinstance(image, bytes):
        return _open(image).size
    height, width = image.shape[:2]
    return width, height


def image_from_base64(text: str) -> bytes:
    """Return the file of a base64 text or data URI.

    Raises:
        ItemError: it is not base64. What it encodes is not looked at.
    """
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except ValueError as error:
        raise ItemError(f"the image is not base64: {error}, it starts with {text[:32]!r}") from error


def _open(data: bytes, max_pixels: int | None = None) -> Image.Image:
    """Open a file from its header; pixels are not decoded yet."""
    name = _format_of(data)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ItemError(f"{error}; this package takes up to {MAX_PIXELS:,} pixels") from error
    except Exception as error:
        raise ItemError(f"truncated or damaged {name}: {error}") from error
    check_size(*image.size, max_pixels)
    # A JPEG of several pictures is a photo with a preview or a depth map behind it; the first is meant.
    if name != "JPEG" and getattr(image, "is_animated", False):
        raise ItemError(f"the {name} file is an animation: send the one frame that is meant")
    if name == "JPEG" and (scans := data.count(b"\xff\xda")) > _MAX_SCANS:
        raise ItemError(f"the JPEG file has {scans} scans, the limit is {_MAX_SCANS}: encode it anew")
    return image


def _format_of(data: bytes) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    start = "nothing at all" if not data else f"{data[:8]!r}"
    raise ItemError(f"not an image: a PNG, JPEG or WebP file was expected, it starts with {start}")


def check_size(width: int, height: int, max_pixels: int | None = None) -> None:
    """Refuse an image without pixels, or with more than `max_pixels`, by default `MAX_PIXELS`.

    Raises:
        ItemError: it is refused.
    """
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if not (width and height):
        raise ItemError(f"the image is empty: {width}x{height} pixels")
    if width * height > limit:
        raise ItemError(
            f"the image is {width}x{height}, {width * height:,} pixels; the limit is {limit:,}: scale it down"
        )


def _read(path: str | Path) -> bytes:
    if str(path).startswith(("http://", "https://")):
        raise ItemError(f"URLs are not fetched, download it first: {path}")
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ItemError(f"cannot read the image file {str(path)!r}: {error}") from error


def _checked_file(data: bytes) -> bytes:
    _open(data)
    return data


def _check_depth(image: Image.Image) -> None:
    # PIL would clip them at 255, so that nearly all of a 16-bit picture turns white.
    if image.mode[0] in "IF":
        raise ItemError(f"a {image.mode} image has more than 8 bits a channel: scale it to 8 bits first")


def _from_pil(image: Image.Image) -> Pixels:
    check_size(*image.size)
    _check_depth(image)
    try:
        return np.asarray(image.convert("RGB"))
    # A lazily opened file is only read here, and may be damaged in any way.
    except Exception as error:
        raise ItemError(f"the PIL image ({image.mode}, {image.size}) has no pixels: {error}") from error


def _from_tensor(tensor: TorchTensor) -> Pixels:
    tensor = tensor.detach().cpu()
    # numpy has no bfloat16, and float32 holds every half exactly.
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if array.ndim == 3 and array.shape[0] not in (1, 3, 4):
        raise ItemError(
            f"a tensor is an image (C, H, W) with C in 1, 3, 4; got {array.shape}"
            + ("; use .permute(2, 0, 1)" if array.shape[2] in (1, 3, 4) else "")
        )
    return _from_array(array.transpose(1, 2, 0) if array.ndim == 3 else array)


def _from_array(array: NDArray[Any]) -> Pixels:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3:
        raise ItemError(f"an image has 2 or 3 dimensions, got {array.ndim}: shape {array.shape}")
    height, width, channels = array.shape
    check_size(width, height)
    if channels not in (1, 3, 4):
        raise ItemError(
            f"an array is an image (H, W, C) with C in 1, 3, 4; got {array.shape}"
            + ("; use .transpose(1, 2, 0)" if height in (1, 3, 4) else "")
        )
    if array.dtype.kind == "f":
        array = _from_floats(array)
    elif array.dtype != np.uint8:
        raise ItemError(f"pixels cannot be {array.dtype}: give uint8 in 0..255 or floats in [0, 1]")
    pixels: Pixels = np.repeat(array, 3, axis=2) if channels == 1 else array[:, :, :3]
    return pixels


def _from_floats(array: NDArray[Any]) -> Pixels:
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise ItemError(f"{count} of {array.size} pixel values are NaN or infinite")
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        if low >= 0:
            hint = "divide by 255" if high <= 255 else "scale them"
        else:
            hint = "map [-1, 1] with (x + 1) / 2" if low >= -1 and high <= 1 else "scale or clamp them"
        raise ItemError(f"float pixels must be in [0, 1], got {low:.4g}..{high:.4g}: {hint}")
    return np.rint(array.clip(0, 1).astype(np.float32) * 255).astype(np.uint8)
