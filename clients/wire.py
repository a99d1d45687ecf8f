"""The Open Inference Protocol (KServe v2) with binary tensors: messages to bytes and back, no I/O.

A message is a JSON header and, behind it, the raw little-endian tensors that the header announces.
Both sides of the wire use these functions, for requests (`key="inputs"`) and answers
(`key="outputs"`) alike.

Source: the KServe "V2 Inference Protocol" and Triton's "Binary Tensor Data Extension".
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rewardzoo.clients.tensors import (
    DTYPES,
    Chunk,
    Stack,
    Tensor,
    TooManyTextsError,
    WireError,
    bytes_tensor,
    datatype_of,
    from_json,
    from_raw,
    shape_of,
    to_json,
)
from rewardzoo.clients.tensors import binary as as_binary
from rewardzoo.errors import ItemError

__all__ = [
    "DETAILS",
    "ERRORS",
    "HEADER",
    "IMAGES",
    "IMAGE_FILES",
    "MAX_PROMPT_BYTES",
    "METADATA",
    "PROMPTS",
    "PROVENANCE",
    "RESIZE",
    "SCORES",
    "Chunk",
    "Message",
    "Stack",
    "Tensor",
    "TooManyTextsError",
    "WireError",
    "bytes_tensor",
    "check_prompt",
    "decode",
    "decode_object",
    "decode_prompt",
    "encode",
    "encode_object",
    "parse_json_length",
    "per_item",
    "plain",
    "requested_outputs",
]

HEADER = "Inference-Header-Content-Length"
"""HTTP header: how many bytes of the body are JSON. Absent when all of them are."""
IMAGES, PROMPTS, METADATA = "images", "prompts", "metadata"
IMAGE_FILES = "image_files"
"""Encoded images, of a server where a tensor has one datatype and `images` is UINT8."""
SCORES, ERRORS, DETAILS = "scores", "errors", "details"
PROVENANCE = "provenance"
"""The provenance of a request in its first item, of a server whose answers have no parameters."""
RESIZE = "resize"
"""The parameter in a model's metadata that tells how a caller may resize images beforehand."""
MAX_PROMPT_BYTES = 32_768

Key = Literal["inputs", "outputs"]
_MAX_DIMS = 16


@dataclass(frozen=True)
class Message:
    """A decoded message: its JSON header and its tensors by name."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the whole message, empty when it has none."""
        return _parameters(self.header, "the message")


def check_prompt(prompt: str, max_bytes: int = MAX_PROMPT_BYTES) -> None:
    """Refuse a prompt that no reward can score.

    Raises:
        ItemError: empty or blank, over `max_bytes` in UTF-8, or not text.
    """
    if not isinstance(prompt, str):
        raise ItemError(f"a prompt must be a str, got {type(prompt).__name__}")
    if not prompt.strip():
        raise ItemError("the prompt is empty: give the text that the image was made from")
    try:
        size = len(prompt.encode())
    except UnicodeEncodeError as error:
        raise ItemError(f"the prompt is not valid Unicode: {error}") from error
    if size > max_bytes:
        raise ItemError(f"the prompt is {size:,} bytes of UTF-8, the limit is {max_bytes:,}: shorten it")


def decode_prompt(raw: bytes) -> str:
    """Return the prompt that one element of a BYTES tensor holds, checked.

    Raises:
        ItemError: not UTF-8, or refused by `check_prompt`.
    """
    try:
        prompt = raw.decode()
    except UnicodeDecodeError as error:
        raise ItemError(f"the prompt is not UTF-8: {error}") from error
    check_prompt(prompt)
    return prompt


def decode_object(raw: bytes | str, what: str) -> dict[str, Any]:
    """Return the JSON object that one element of a BYTES tensor holds; an empty element is `{}`.

    Raises:
        ItemError: not JSON, or not an object; the message calls it `what`.
    """
    try:
        value = json.loads(raw or "{}")
    except (ValueError, RecursionError) as error:
        raise ItemError(f"the {what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ItemError(f"the {what} must be a JSON object, got {type(value).__name__}")
    return value


def encode_object(value: Mapping[str, Any]) -> str:
    """Return a `plain` object as one element of a BYTES tensor; `{}` is the empty text."""
    return json.dumps(value, allow_nan=False) if value else ""


def plain(value: Any) -> Any:
    """Return `value` as JSON gives it back: lists for tuples, null for NaN and infinities, text as keys.

    Arrays and tensors become lists, their scalars numbers.

    Raises:
        ItemError: something in it has no form in JSON.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # a lone surrogate cannot be sent
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise ItemError(f"{value!r:.60}, a {type(value).__name__} in its details, has no form in JSON")


def per_item(tensor: Tensor, name: str) -> Tensor:
    """Return a tensor of one value an item, [N] or [N,1], as [N].

    Raises:
        WireError: any other shape.
    """
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        return tensor.reshape(-1)
    if tensor.ndim != 1:
        raise WireError(f"tensor {name!r} must be [N] or [N,1], got {list(tensor.shape)}")
    return tensor


def parse_json_length(value: str | None) -> int | None:
    """Read the value of the HTTP header `HEADER`.

    Raises:
        WireError: not a non-negative decimal number.
    """
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 19):
        raise WireError(f"{HEADER} must be a non-negative number, got {value[:40]!r}")
    return int(value)


def requested_outputs(header: Mapping[str, Any], available: Sequence[str]) -> dict[str, bool]:
    """Say which outputs a request asks for, in its order, and whether each is to be sent binary.

    Without `outputs` all of `available` are meant. `binary_data` of an output comes before
    `binary_data_output` of the request.

    Raises:
        WireError: an output that does not exist, or an option that is not supported.
    """
    default = _parameters(header, "the request").get("binary_data_output", False)
    wanted: dict[str, bool] = {}
    for entry in _entries(header, "outputs") or [{"name": name} for name in available]:
        name = entry["name"]
        if name not in available:
            raise WireError(f"there is no output {name!r:.60}, there are: {', '.join(available)}")
        parameters = _parameters(entry, f"output {name!r}")
        for option in ("classification", "shared_memory_region"):
            if option in parameters:
                raise WireError(f"output {name!r}: {option!r} is not supported, leave it out")
        binary = parameters.get("binary_data", default)
        if not isinstance(binary, bool):
            raise WireError(f"output {name!r}: 'binary_data' must be true or false, got {binary!r:.40}")
        wanted[name] = binary
    return wanted


def encode(
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor | Stack],
    *,
    key: Key,
    binary: Collection[str] | None = None,
) -> tuple[list[Chunk], int]:
    """Encode a message; pixels of contiguous arrays are not copied.

    Tensors named in `binary` (all by default) follow the JSON. The others are written into it,
    where floats that are not finite become null. Returns the body's chunks and the length of the
    first, the JSON.

    Raises:
        WireError: a dtype that the protocol has no name for, or bytes in JSON that are not UTF-8.
    """
    entries: list[dict[str, Any]] = []
    chunks: list[Chunk] = []
    for name, tensor in tensors.items():
        entry: dict[str, Any] = {"name": name, "shape": shape_of(tensor)}
        try:
            if binary is None or name in binary:
                entry["datatype"], raw = as_binary(tensor)
                entry["parameters"] = {"binary_data_size": sum(map(len, raw))}
                chunks += raw
            else:
                whole = np.stack(tensor) if isinstance(tensor, list) else tensor
                entry["datatype"], entry["data"] = datatype_of(whole), to_json(whole)
        except WireError as error:
            raise WireError(f"tensor {name!r}: {error}") from error
        entries.append(entry)
    head = json.dumps({**header, key: entries}, allow_nan=False).encode()
    return [head, *chunks], len(head)


def decode(
    body: Chunk | bytearray, json_length: int | None, *, key: Key, max_texts: int | None = None
) -> Message:
    """Decode a message; its binary numeric tensors are views of `body`.

    `json_length` None means that the whole body is JSON. `max_texts` is how many elements a BYTES tensor
    may have: each costs Python far more than the four bytes that announce it.

    Raises:
        WireError: whatever is wrong with the message; nothing else, whatever the bytes.
    """
    view = memoryview(body).cast("B")
    if json_length is not None and not 0 <= json_length <= len(view):
        raise WireError(f"{HEADER} is {json_length}, the body has {len(view)} bytes")
    try:
        header = json.loads(bytes(view[:json_length]))
    except (ValueError, RecursionError) as error:
        raise WireError(f"the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise WireError(f"the header must be a JSON object, got {type(header).__name__}")
    _parameters(header, "the message")
    if not isinstance(header.get("id", ""), str):
        raise WireError(f"'id' must be a string, got {header['id']!r:.40}")
    rest = view[len(view) if json_length is None else json_length :]
    tensors: dict[str, Tensor] = {}
    for entry in _entries(header, key):
        name = entry["name"]
        if name in tensors:
            raise WireError(f"tensor {name!r:.60} is given twice")
        try:
            tensors[name], used = _tensor(entry, rest, max_texts)
        except WireError as error:
            raise type(error)(f"tensor {name!r:.60}: {error}") from error
        rest = rest[used:]
    if len(rest):
        raise WireError(f"{len(rest)} bytes follow that no 'binary_data_size' accounts for")
    return Message(header, tensors)


def _tensor(entry: Mapping[str, Any], rest: memoryview, max_texts: int | None) -> tuple[Tensor, int]:
    """Read a tensor from its entry or from the front of `rest`; say how much it took there."""
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if not isinstance(datatype, str) or not (datatype in DTYPES or datatype == "BYTES"):
        known = ", ".join([*DTYPES, "BYTES"])
        raise WireError(f"'datatype' must be one of {known}; got {datatype!r:.40}")
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMS
        or not all(type(n) is int and 0 <= n < 2**31 for n in shape)
    ):
        raise WireError(f"'shape' must list sizes from 0 to 2**31-1, got {shape!r:.60}")
    count = math.prod(shape)
    if datatype == "BYTES" and max_texts is not None and count > max_texts:
        raise TooManyTextsError(f"{count} BYTES elements, the limit is {max_texts}: send fewer at once")
    parameters = _parameters(entry, "here")
    if "shared_memory_region" in parameters:
        raise WireError("shared memory is not supported, send the data")
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in entry):
        raise WireError("give either 'data' or 'parameters.binary_data_size'")
    if size is None:
        flat, used = from_json(entry["data"], datatype, count), 0
    elif type(size) is int and 0 <= size <= len(rest):
        flat, used = from_raw(rest[:size], datatype, count), size
    else:
        raise WireError(
            f"'binary_data_size' is {size!r:.40}, but {len(rest)} bytes are left behind the JSON "
            f"(whose length goes into the HTTP header {HEADER})"
        )
    try:
        return flat.reshape(shape), used
    except ValueError as error:
        raise WireError(f"shape {shape} is not possible: {error}") from error


def _entries(header: Mapping[str, Any], key: Key) -> list[dict[str, Any]]:
    entries = header.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise WireError(f"{key!r} must be a list of objects")
    if not all(isinstance(entry.get("name"), str) for entry in entries):
        raise WireError(f"each of {key!r} needs a 'name'")
    return entries


def _parameters(owner: Mapping[str, Any], what: str) -> dict[str, Any]:
    parameters = owner.get("parameters", {})
    if not isinstance(parameters, dict):
        raise WireError(f"{what}: 'parameters' must be an object, got {type(parameters).__name__}")
    return parameters
