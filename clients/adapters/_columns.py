"""Images and prompts out of the forms in which trainers' rows have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardzoo.clients.images import TorchTensor, image_from_base64
from rewardzoo.errors import ItemError

Column = str | Callable[[Mapping[str, Any]], Sequence[Any]]
"""Where a value is in the columns of a batch: a column's name, or a function of all of them."""
# How base64 of PNG, JPEG and WebP files begins.
_BASE64 = ("iVBORw0KGgo", "/9j/", "UklGR")
_MAX_PATH = 4096


def image_of(value: Any) -> Any:
    """Return the image of a row as `RewardClient.score` takes it.

    Beside what that takes: a list of one image; a batch (1, C, H, W) of one; the mapping `{"bytes", "path"}`
    of `datasets`; a part of a message, as `{"type": "image", "image": …}` or `{"image_url": {"url": …}}`; a
    data URI; base64 of a PNG, JPEG or WebP file. What is none of these is returned as it is: the client
    refuses that item alone, and says why.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        return image_of(value[0])
    if isinstance(value, Mapping):
        for key in ("bytes", "image", "image_url", "url", "path"):
            if value.get(key) is not None:
                return image_of(value[key])
        return value
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, TorchTensor) and value.ndim == 4 and len(value) == 1:
        return value[0]
    return value


def prompt_of(value: Any) -> Any:
    """Return the text of a prompt: itself, or what the last message of a conversation's user says.

    What is neither is returned as it is: the client refuses it.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    for message in reversed(value):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            return " ".join(part["text"] for part in content if part.get("type") == "text")
    raise ValueError(f"the conversation has no message of the role 'user': {value!r:.200}")


@dataclass(frozen=True)
class Columns:
    """Where in the columns of a batch the images, the prompts and the metadata of its items are.

    `metadata` is a column of objects or their JSON, or the names of columns to make the objects of.
    """

    images: Column
    prompts: Column
    metadata: Column | Sequence[str] | None = None

    def of(self, columns: Mapping[str, Any]) -> tuple[Sequence[Any], Sequence[Any], list[Any] | None]:
        """Return the three, one an item.

        Raises:
            ValueError: there is no such column; the message has those that there are.
        """
        prompts = _column(columns, self.prompts)
        return _column(columns, self.images), prompts, metadata_of(columns, self.metadata, len(prompts))


def metadata_of(
    columns: Mapping[str, Any], where: Column | Sequence[str] | None, count: int
) -> list[Mapping[str, Any]] | None:
    """Return one metadata object an item, see `Columns`."""
    if where is None:
        return None
    if isinstance(where, str) or callable(where):
        return [_object(value) for value in _column(columns, where)]
    found = {name: _column(columns, name) for name in where}
    return [{name: values[i] for name, values in found.items()} for i in range(count)]


def only(info: Mapping[str, Any], keys: Sequence[str]) -> list[dict[str, Any]] | None:
    """Return the metadata of a lone item: those of `keys` that `info` has, None where none is asked for."""
    return [{key: info[key] for key in keys if key in info}] if keys else None


def to_uint8(images: Any) -> Any:
    """Return a batch as uint8 by torch's own arithmetic, where it is a tensor (N, C, H, W) of floats.

    `(images * 255).round().clamp(0, 255)` in the tensor's dtype and on its device, as the diffusion
    trainers turn what they decode into pictures (flow_grpo, ddpo_pytorch: `rewards.py`). An image with
    NaN stays what it is, for the client to refuse: as uint8 it would be a picture like any other.
    """
    if not is_batch(images) or isinstance(images, np.ndarray) or not images.is_floating_point():
        return images
    tensor: Any = images.detach()
    broken = (tensor != tensor).flatten(1).any(1).tolist()
    pixels = (tensor * 255).round().clamp(0, 255).byte().cpu()
    return [tensor[i] if is_broken else pixels[i] for i, is_broken in enumerate(broken)]


def is_batch(images: Any) -> bool:
    """Say whether several images are one array or tensor."""
    return isinstance(images, np.ndarray) or (
        not isinstance(images, list | tuple) and isinstance(images, TorchTensor)
    )


def _column(columns: Mapping[str, Any], where: Column) -> Sequence[Any]:
    if callable(where):
        return where(columns)
    if where not in columns:
        raise ValueError(f"there is no column {where!r}: there are {', '.join(sorted(columns))}")
    values: Sequence[Any] = columns[where]
    return values


def _from_text(text: str) -> str | bytes:
    if not text.startswith(("data:", *_BASE64)):
        return text
    try:
        return image_from_base64(text)
    except ItemError:
        # A path may begin like base64 of a JPEG file; what is no file either is refused as that.
        return text if text.startswith("/") and len(text) < _MAX_PATH else text[:32].encode()


def _object(value: Any) -> Mapping[str, Any]:
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise ValueError(f"metadata must be an object, or its JSON, got {value!r:.80}")
    return found
