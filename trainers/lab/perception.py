"""From pixels to objects: where they are, of which color and shape.

On an unsaturated background the chroma of a pixel (its RGB less their mean) grows in proportion to
how much of the pixel a colored object covers, whatever the background's grey. So half of a palette
color's chroma marks an object's edge, and the sum of this cover is the object's area, however soft
its edges are. Shapes are told apart by stencils: each is laid on the object with the object's own
center and area, sharp and blurred, and the one that differs least wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rewardzoo.trainers.lab.render import PALETTE, signed_distance
from rewardzoo.trainers.lab.scene import SHAPES

MIN_AREA = 0.0015
"""A colored patch smaller than this share of the picture is a speck, not an object."""

_EDGE = 0.5
_SMOOTHING = 0.5 / 64
_REACH = 3 / 64

# Lengths of a stencil, in square roots of its area: its side, and by how much it is blurred.
_SPAN = 2.6
_SIDE = 24
_BLURS = (0.03, 0.08, 0.15, 0.25)


@dataclass(frozen=True)
class Found:
    """An object in a picture: `center` (x, y) and `area` are shares of its sides and its area."""

    color: str
    shape: str
    center: tuple[float, float]
    area: float


def find_objects(image: NDArray[np.uint8]) -> list[Found]:
    """Find the colored objects of a picture, uint8 RGB pixels (H, W, 3).

    Raises:
        ValueError: for another dtype or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image must be uint8 RGB pixels (H, W, 3), got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    reach = max(1, round(_REACH * min(height, width)))
    speck = MIN_AREA * height * width
    color, covers = _segment(image)
    found = []
    for k, name in enumerate(PALETTE):
        labels, _ = ndimage.label(color == k)
        for label, box in enumerate(ndimage.find_objects(labels), start=1):
            if (labels[box] == label).sum() < speck:
                continue
            window = (_widen(box[0], reach), _widen(box[1], reach))
            body = labels[window] == label
            around = ndimage.binary_dilation(body, iterations=reach)
            own = body | (around & (color[window] < 0))
            cover = np.where(own, covers[k][window], 0)
            area = float(cover.sum())
            if area < speck:  # a haze of the opposite color around it outweighs it
                continue
            y, x = (float(c) for c in ndimage.center_of_mass(cover))
            center = ((window[1].start + x + 0.5) / width, (window[0].start + y + 0.5) / height)
            shape = _shape(cover, (y, x), area)
            found.append(Found(name, shape, center, area / (height * width)))
    return found


def _segment(image: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return each pixel's palette color or -1 (H, W), and its cover by each color (6, H, W)."""
    sigma = _SMOOTHING * min(image.shape[:2])
    pixels = ndimage.gaussian_filter(image.astype(np.float32), sigma, axes=(0, 1))
    chroma = pixels - pixels.mean(axis=2, keepdims=True)
    chroma -= np.median(chroma, axis=(0, 1))  # the background's own tint
    palette = np.array(list(PALETTE.values()), dtype=np.float32)
    palette -= palette.mean(axis=1, keepdims=True)
    length = np.linalg.norm(palette, axis=1)
    along = np.moveaxis(chroma @ (palette / length[:, None]).T, 2, 0)
    nearest = along.argmax(axis=0)
    solid = along.max(axis=0) > _EDGE * length[nearest]
    return np.where(solid, nearest, -1), along / length[:, None, None]


def _widen(side: slice, reach: int) -> slice:
    return slice(max(side.start - reach, 0), side.stop + reach)


def _shape(cover: NDArray[np.float32], center: tuple[float, float], area: float) -> str:
    """Return the shape whose stencil differs least from an object's cover (h, w)."""
    step = _SPAN * area**0.5 / _SIDE
    middle = (_SIDE - 1) / 2
    seen = ndimage.affine_transform(
        cover,
        np.array([step, step]),
        offset=[c - step * middle for c in center],
        output_shape=(_SIDE, _SIDE),
        order=1,
    )
    errors = np.square(_stencils() - seen).sum(axis=(1, 2))
    return SHAPES[errors.argmin() // len(_BLURS)]


@cache
def _stencils() -> NDArray[np.float32]:
    """Draw each shape with area 1 around its centroid at each blur (shapes * blurs, side, side)."""
    last = _SPAN * (1 - 1 / _SIDE) / 2
    grid = np.linspace(-last, last, _SIDE, dtype=np.float32)
    # Area, and how far below the middle the centroid is, of a shape in the square [-1, 1]².
    fine = np.linspace(-1, 1, 401, dtype=np.float32)
    stencils = []
    for shape in SHAPES:
        inside = signed_distance(shape, fine, fine[:, None]) < 0
        radius = np.float32(1 / np.sqrt(4 * inside.mean()))
        low = fine[np.nonzero(inside)[0]].mean(dtype=np.float32)
        distance = signed_distance(shape, grid / radius, grid[:, None] / radius + low) * radius
        sharp = np.clip(0.5 - distance * _SIDE / _SPAN, 0, 1)
        stencils += [ndimage.gaussian_filter(sharp, blur * _SIDE / _SPAN) for blur in _BLURS]
    return np.stack(stencils)
