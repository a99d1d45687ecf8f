"""One tensor of the Open Inference Protocol, to raw bytes or JSON and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[Any]
"""An array; BYTES tensors are object arrays whose elements are `bytes`."""
Stack = list[Tensor]
"""Arrays of one shape that mean a single tensor, themselves stacked: nothing is copied to make one."""
Chunk = bytes | memoryview

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
    **{f"INT{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    **{f"FP{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)},
}
"""What each numeric datatype of the protocol is in numpy. BYTES is the one that is not here."""
_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}


class WireError(ValueError):
    """A message is malformed; the text says where and what was expected."""


class TooManyTextsError(WireError):
    """A BYTES tensor has more elements than its reader allows."""


def bytes_tensor(items: Sequence[str | bytes]) -> Tensor:
    """Make a BYTES tensor [N] of texts or byte strings."""
    out = np.empty(len(items), dtype=object)
    out[:] = [item.encode() if isinstance(item, str) else item for item in items]
    return out


def datatype_of(tensor: Tensor) -> str:
    """Return the protocol's name for the tensor's dtype.

    Raises:
        WireError: there is none.
    """
    if tensor.dtype == object:
        return "BYTES"
    datatype = _DATATYPES.get(tensor.dtype.newbyteorder("<"))
    if datatype is None:
        raise WireError(f"the protocol has no datatype for {tensor.dtype}")
    return datatype


def to_raw(tensor: Tensor) -> Iterator[Chunk]:
    """Yield the tensor's bytes; a contiguous array is not copied."""
    if tensor.dtype == object:
        for item in tensor.flat:
            yield len(item).to_bytes(4, "little")
            yield item
    elif tensor.size:
        little = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
        yield little.reshape(-1).view(np.uint8).data


def shape_of(tensor: Tensor | Stack) -> list[int]:
    """Return the shape; of a stack, the one that it means."""
    return [len(tensor), *tensor[0].shape] if isinstance(tensor, list) else list(tensor.shape)


def binary(tensor: Tensor | Stack) -> tuple[str, list[Chunk]]:
    """Return the datatype and the bytes of a tensor, uncopied where it is contiguous.

    Raises:
        WireError: the protocol has no name for its dtype.
    """
    layers = tensor if isinstance(tensor, list) else [tensor]
    return datatype_of(layers[0]), [chunk for layer in layers for chunk in to_raw(layer)]


def from_raw(raw: memoryview, datatype: str, count: int) -> Tensor:
    """Read `count` elements, which must be all of `raw`; numeric ones are a view of it.

    Raises:
        WireError: more or fewer bytes than that.
    """
    if datatype != "BYTES":
        dtype = DTYPES[datatype]
        if len(raw) != count * dtype.itemsize:
            size = count * dtype.itemsize
            raise WireError(f"{count} elements of {datatype} are {size} bytes, got {len(raw)}")
        return np.frombuffer(raw, dtype=dtype)
    items: list[bytes] = []
    at = 0
    while at + 4 <= len(raw) and len(items) < count:
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if end > len(raw):
            break
        items.append(bytes(raw[at + 4 : end]))
        at = end
    if at != len(raw) or len(items) != count:
        raise WireError(
            f"expected {count} BYTES elements (uint32 length, then data) in {len(raw)} bytes, "
            f"read {len(items)} in {at}"
        )
    return bytes_tensor(items)


def to_json(tensor: Tensor) -> list[Any]:
    """Return the flattened elements; floats that are not finite become None, JSON's null.

    Raises:
        WireError: bytes that are not UTF-8.
    """
    flat: list[Any] = tensor.reshape(-1).tolist()
    if tensor.dtype.kind == "f":
        return [x if math.isfinite(x) else None for x in flat]
    if tensor.dtype != object:
        return flat
    try:
        return [item.decode() for item in flat]
    except UnicodeDecodeError as error:
        raise WireError(f"not UTF-8, so it must be sent binary: {error}") from error


def from_json(data: object, datatype: str, count: int) -> Tensor:
    """Read `count` elements of a flat or nested list; null is NaN where the datatype has one.

    Raises:
        WireError: another number of elements, or one that `datatype` cannot hold.
    """
    if not isinstance(data, list):
        raise WireError(f"'data' must be a list, got {type(data).__name__}")
    flat = list(_flatten(data))
    if len(flat) != count:
        raise WireError(f"the shape means {count} elements, 'data' has {len(flat)}")
    try:
        if datatype == "BYTES":
            return bytes_tensor(_only(flat, str))
        dtype = DTYPES[datatype]
        if dtype.kind == "f":
            numbers = _only([math.nan if x is None else x for x in flat], int, float)
            with np.errstate(over="ignore"):
                return np.array(numbers, dtype=np.float64).astype(dtype)
        if dtype.kind == "b":
            return np.array(_only(flat, bool), dtype=dtype)
        limits = np.iinfo(dtype)
        for x in _only(flat, int):
            if not limits.min <= x <= limits.max:
                raise ValueError(f"{x!r:.40} is not in {limits.min}..{limits.max}")
        return np.array(flat, dtype=dtype)
    except (ValueError, OverflowError) as error:
        raise WireError(f"'data' does not fit {datatype}: {error}") from error


def _only(flat: list[Any], *types: type) -> list[Any]:
    for x in flat:
        # `type` and not `isinstance`: JSON's true would pass for an int.
        if type(x) not in types:
            raise ValueError(f"found {x!r:.40}")
    return flat


def _flatten(data: list[Any]) -> Iterator[Any]:
    # A stack of its own, because a hostile nesting would exhaust Python's.
    stack = [iter(data)]
    while stack:
        for item in stack[-1]:
            if isinstance(item, list):
                stack.append(iter(item))
                break
            yield item
        else:
            stack.pop()
