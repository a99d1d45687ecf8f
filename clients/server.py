"""What every transport to a server of the Open Inference Protocol shares: what a model declares of itself
decides how a part is sent to it, and its tensors become a reply."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from rewardzoo.clients import wire
from rewardzoo.clients.transport import Part, Reply, joined
from rewardzoo.errors import ItemError, NotServedError, RequestError, TooLargeError

Tensors = Mapping[str, wire.Tensor | wire.Stack]


@dataclass(frozen=True)
class ServedReward:
    """A reward that a server hosts; `ready` once its weights are loaded."""

    name: str
    ready: bool
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Declared:
    """What a server says of one of its models.

    `model` is its name there and `reward` the reward it serves, `dims` the number of dimensions of each
    input, `max_batch` how many items a request may have (None: no limit is known) and `parameters` what it
    says of the reward.
    """

    model: str
    reward: str
    dims: Mapping[str, int]
    max_batch: int | None
    parameters: Mapping[str, Any]

    def inputs(self, part: Part) -> dict[str, wire.Tensor | wire.Stack]:
        """Return the tensors of a request: a text an item is [N] or [N,1], as the model declares it."""
        encoded = [p for p in part.payloads if isinstance(p, bytes)]
        texts: dict[str, Sequence[str | bytes]] = {wire.PROMPTS: part.prompts}
        if part.metadata is not None:
            texts[wire.METADATA] = part.metadata
        if encoded:
            texts[wire.IMAGE_FILES if wire.IMAGE_FILES in self.dims else wire.IMAGES] = encoded
        tensors: dict[str, wire.Tensor | wire.Stack] = {}
        if not encoded:
            tensors[wire.IMAGES] = [p for p in part.payloads if not isinstance(p, bytes)]
        for name, items in texts.items():
            tensor = wire.bytes_tensor(items)
            tensors[name] = tensor[:, None] if self.dims.get(name) == 2 else tensor
        return tensors

    def pieces(self, part: Part) -> Iterator[Part]:
        """Cut a part into requests that the model takes."""
        size = self.max_batch or len(part.rows)
        for at in (slice(start, start + size) for start in range(0, len(part.rows), size)):
            notes = None if part.metadata is None else part.metadata[at]
            yield Part(part.rows[at], part.payloads[at], part.prompts[at], notes)


class ServerTransport(ABC):
    """A `Transport` to a rewardzoo service, to Triton or to any other server of the protocol. Thread-safe."""

    def __init__(self) -> None:
        self._declared: dict[str, Declared] = {}

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        """Score a part; see `Transport`. One that is too large for the server is sent in halves."""
        if model not in self._declared:
            self._declared[model] = self._find(model, deadline)
        declared = self._declared[model]
        pieces = deque(declared.pieces(part))
        replies: list[Reply] = []
        while pieces:
            piece = pieces.popleft()
            try:
                replies.append(self.send(declared, piece, deadline))
            except TooLargeError:
                if len(piece.rows) == 1:
                    raise
                declared = replace(declared, max_batch=len(piece.rows) // 2)
                self._declared[model] = declared  # so that the next part is not sent in vain
                pieces.extendleft(reversed(list(declared.pieces(piece))))
        return joined(replies)

    def rewards(self, *, deadline: float) -> list[ServedReward]:
        """List what the server hosts."""
        found = []
        for entry in self.index(deadline):
            if entry.get("state", "READY") == "READY":
                declared = self._describe(entry["name"], deadline)
                found.append(ServedReward(declared.reward, True, declared.parameters))
            else:
                found.append(ServedReward(entry["name"], False))
        return found

    @abstractmethod
    def ready(self, *, timeout: float) -> bool:
        """Say whether the server answers now and has its weights loaded."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    def send(self, declared: Declared, part: Part, deadline: float) -> Reply:
        """Have a part scored by one request, repeated where that is safe."""

    @abstractmethod
    def index(self, deadline: float) -> list[dict[str, Any]]:
        """Return the server's models: "name" and, where it says so, "state"."""

    @abstractmethod
    def metadata(self, model: str, deadline: float) -> dict[str, Any]:
        """Return a model's metadata in the protocol's form of JSON."""

    @abstractmethod
    def config(self, model: str, deadline: float) -> dict[str, Any]:
        """Return a model's configuration in the form of Triton's extension."""

    def _find(self, reward: str, deadline: float) -> Declared:
        try:
            return self._describe(reward, deadline)
        except NotServedError as error:
            if reward == triton_name(reward):
                raise
            try:
                return self._describe(triton_name(reward), deadline)
            except NotServedError:
                raise error from None

    def _describe(self, model: str, deadline: float) -> Declared:
        metadata = self.metadata(model, deadline)
        dims = {tensor["name"]: len(tensor.get("shape", [])) for tensor in metadata.get("inputs", [])}
        config: dict[str, Any] = {}
        # A column of texts is the mark of Triton's batching, and its configuration has the limit.
        if dims.get(wire.PROMPTS) == 2:
            with suppress(RequestError):  # the extension is optional
                config = self.config(model, deadline)
        told = {
            key: value["string_value"]
            for key, value in config.get("parameters", {}).items()
            if isinstance(value, dict) and "string_value" in value
        }
        return Declared(
            model=model,
            reward=told.pop("name", model),
            dims=dims,
            max_batch=config.get("max_batch_size") or None,
            parameters=metadata.get("parameters") or told,
        )


def triton_name(reward: str) -> str:
    """Return what a reward is called as a model of Triton: `hpsv2:mini` is `hpsv2.mini` there.

    Triton does not undo the escaping of a URL's path, in which its own client writes a colon as %3A. The
    first dot stands for the colon: a reward's own name has none.
    """
    return reward.replace(":", ".", 1)


def read_reply(
    tensors: Mapping[str, wire.Tensor], parameters: Mapping[str, Any], count: int, source: str
) -> Reply:
    """Return the reply that a server's output tensors mean for `count` items.

    Raises:
        RequestError: they mean none; the message says that `source` sent them.
    """
    try:
        scores = _column(tensors, wire.SCORES, "f")
        errors = _column(tensors, wire.ERRORS, "O")
        objects = _column(tensors, wire.DETAILS, "O")  # not every server of the protocol has them
        details = {i: wire.decode_object(raw, "details") for i, raw in enumerate(objects) if raw}
        notes = [n for n in _column(tensors, wire.PROVENANCE, "O") if n][:1]
        provenance = wire.decode_object(notes[0], "provenance") if notes else {}
    except (wire.WireError, ItemError) as error:
        raise malformed(source, error) from error
    if len(scores) != count or not {len(errors), len(objects)} <= {0, count}:
        raise RequestError(
            f"{source} answered with {len(scores)} scores, {len(errors)} errors and {len(objects)} "
            f"details for {count} items"
        )
    texts = {i: raw.decode(errors="replace") for i, raw in enumerate(errors) if raw}
    return Reply(scores, texts, {**parameters, **provenance}, details)


def malformed(source: str, error: Exception) -> RequestError:
    """Return the error that an answer which cannot be read means."""
    return RequestError(f"{source} answered with a malformed message: {error}")


def _column(tensors: Mapping[str, wire.Tensor], name: str, kind: str) -> list[Any]:
    if name not in tensors:
        return []
    tensor = wire.per_item(tensors[name], name)
    if tensor.dtype.kind != kind:
        raise wire.WireError(f"tensor {name!r} cannot be of dtype {tensor.dtype}")
    return list(tensor.tolist())
