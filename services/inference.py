"""The Open Inference Protocol's messages in terms of rewards: metadata, items, outcomes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardzoo.clients import wire
from rewardzoo.clients.wire import Chunk, Message, Tensor, WireError
from rewardzoo.errors import ItemError
from rewardzoo.services.batcher import Item
from rewardzoo.services.workers import Encoded, Shelf

if TYPE_CHECKING:
    from rewardzoo.rewards import Outcome
    from rewardzoo.services.hosted import HostedReward

VERSION = "1"
OUTPUTS = (wire.SCORES, wire.ERRORS, wire.DETAILS)
"""What every reward answers with; each of them only where a request that names some names it."""


def metadata(rewards: Sequence[HostedReward]) -> dict[str, Any]:
    """Return the model metadata of the protocol, with what is known of the rewards as parameters."""
    shape = [-1] if len(rewards) == 1 else [-1, len(rewards)]
    about = _about(rewards[0]) if len(rewards) == 1 else _provenance(rewards)
    return {
        "name": joined(rewards),
        "versions": [VERSION],
        "platform": "rewardzoo",
        "inputs": [
            {
                "name": wire.IMAGES,
                "datatype": "UINT8",
                "shape": [-1, -1, -1, 3],
                "parameters": {"also": "BYTES [-1]: encoded PNG, JPEG or WebP files"},
            },
            {"name": wire.PROMPTS, "datatype": "BYTES", "shape": [-1]},
            {
                "name": wire.METADATA,
                "datatype": "BYTES",
                "shape": [-1],
                "parameters": {"optional": True},
            },
        ],
        "outputs": [
            {"name": wire.SCORES, "datatype": "FP32", "shape": shape},
            {"name": wire.ERRORS, "datatype": "BYTES", "shape": shape},
            {"name": wire.DETAILS, "datatype": "BYTES", "shape": shape},
        ],
        "parameters": {**about, **_resize(rewards)},
    }


def joined(rewards: Sequence[HostedReward]) -> str:
    """Return the name of rewards that score together."""
    return "+".join(reward.name for reward in rewards)


def _about(reward: HostedReward) -> dict[str, Any]:
    spec = reward.spec
    low, high = spec.score_range
    return {
        **reward.provenance(),
        "title": spec.title,
        "paper": spec.paper,
        "weights_license": reward.variant.weights_license,
        "score_low": low,
        "score_high": high,
        "higher_is_better": spec.higher_is_better,
        "max_batch": spec.max_batch,
    }


def _resize(rewards: Sequence[HostedReward]) -> dict[str, str]:
    """Return the step that a caller may take of the images beforehand: that of all the rewards, if of one."""
    steps = {reward.variant.resize for reward in rewards}
    step = steps.pop() if len(steps) == 1 else None
    return {} if step is None else {wire.RESIZE: str(step)}


def _provenance(rewards: Sequence[HostedReward]) -> dict[str, Any]:
    if len(rewards) == 1:
        return dict(rewards[0].provenance())
    # The protocol's parameters are scalars.
    return {"provenance": json.dumps({reward.name: reward.provenance() for reward in rewards})}


def read_items(message: Message, rewards: int = 1, shelf: Shelf | None = None) -> list[Item | ItemError]:
    """Return what a request asks to be scored; an item that cannot be is an error in its place.

    Encoded images that so many rewards score are shared by way of `shelf`.

    Raises:
        WireError: a tensor is missing, unknown, or of the wrong datatype or shape.
    """
    tensors = message.tensors
    known = (wire.IMAGES, wire.PROMPTS, wire.METADATA)
    if unknown := sorted(tensors.keys() - set(known)):
        raise WireError(f"there is no input {unknown[0]!r:.60}, there are: {', '.join(known)}")
    for name in known[:2]:
        if name not in tensors:
            raise WireError(f"input {name!r} is missing")
    prompts = _texts(tensors[wire.PROMPTS], wire.PROMPTS)
    images = _images(tensors[wire.IMAGES])
    none = wire.bytes_tensor([b""] * len(prompts))
    extras = _texts(tensors.get(wire.METADATA, none), wire.METADATA)
    for name, tensor in ((wire.IMAGES, images), (wire.METADATA, extras)):
        if len(tensor) != len(prompts):
            raise WireError(
                f"{name!r} has {len(tensor)} items, {wire.PROMPTS!r} {len(prompts)}: give one each"
            )
    shared: Any = images
    if rewards > 1 and images.dtype == object:
        shared = [Encoded(image, rewards, shelf) for image in images]
    return [_item(*parts) for parts in zip(shared, prompts, extras, strict=True)]


def write_answer(
    message: Message, rewards: Sequence[HostedReward], outcomes: Sequence[Sequence[Outcome]]
) -> tuple[list[Chunk], int | None]:
    """Return the body of the answer and the length of its JSON, None when all of it is JSON.

    `outcomes` has what each reward made of the items: the outputs are [N,R], or [N] for one reward.

    Raises:
        WireError: the request asks for an output that does not exist.
    """
    wanted = wire.requested_outputs(message.header, OUTPUTS)
    flat = [outcome for row in zip(*outcomes, strict=True) for outcome in row]
    tensors = {
        wire.SCORES: np.array(
            [math.nan if isinstance(o, ItemError) else o.value for o in flat], dtype=np.float32
        ),
        wire.ERRORS: wire.bytes_tensor([str(o) if isinstance(o, ItemError) else "" for o in flat]),
        wire.DETAILS: wire.bytes_tensor(
            ["" if isinstance(o, ItemError) else wire.encode_object(o.details) for o in flat]
        ),
    }
    if len(rewards) > 1:
        tensors = {name: tensor.reshape(-1, len(rewards)) for name, tensor in tensors.items()}
    header = {
        "model_name": joined(rewards),
        "model_version": VERSION,
        **({"id": message.header["id"]} if "id" in message.header else {}),
        "parameters": _provenance(rewards),
    }
    binary = [name for name, is_binary in wanted.items() if is_binary]
    body, length = wire.encode(header, {name: tensors[name] for name in wanted}, key="outputs", binary=binary)
    return body, length if binary else None


def _images(tensor: Tensor) -> Tensor:
    if tensor.dtype == object:
        return wire.per_item(tensor, wire.IMAGES)
    if tensor.dtype != np.uint8 or tensor.ndim != 4 or tensor.shape[3] != 3:
        raise WireError(
            f"input {wire.IMAGES!r} must be UINT8 [N,H,W,3], or BYTES [N] of encoded files; "
            f"got {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor


def _texts(tensor: Tensor, name: str) -> Tensor:
    if tensor.dtype != object:
        raise WireError(f"input {name!r} must be BYTES, got {tensor.dtype}")
    return wire.per_item(tensor, name)


def _item(image: Any, prompt: bytes, extra: bytes) -> Item | ItemError:
    try:
        return Item(image, wire.decode_prompt(prompt), wire.decode_object(extra, wire.METADATA))
    except ItemError as error:
        return error
