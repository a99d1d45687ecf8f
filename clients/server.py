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
from rewardzoo.clients.downscale import downscaled
from rewardzoo.clients.transport import Part, Reply, Transport, joined
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
        size = self.max_batch or len(part)
        for start in range(0, len(part), size):
            yield part.take(range(start, min(start + size, len(part))))


@dataclass(frozen=True)
class Answer:
    """What a server answered: its output tensors, and the name by which it calls the model."""

    tensors: Mapping[str, wire.Tensor]
    parameters: Mapping[str, Any]
    model: str
    source: str


class ServerTransport(Transport, ABC):
    """A `Transport` to a rewardzoo service, to Triton or to any other server of the protocol. Thread-safe.

    It asks once: `rewardzoo.clients.pool` repeats what may be repeated. With `downscale` pixels are resized
    here where the server says how.
    """

    def __init__(self, *, downscale: bool = False) -> None:
        self._downscale = downscale
        self._declared: dict[str, Declared | None] = {}

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        """Score a part; see `Transport`. One that is too large for the server is sent in halves."""
        return self.infer_all([model], part, deadline=deadline)[0]

    def infer_all(self, models: Sequence[str], part: Part, *, deadline: float) -> Sequence[Reply]:
        """Score a part with each of `models`: in one request where the server takes joined names."""
        name = "+".join(models)
        if name not in self._declared:
            self._declared[name] = self._find(models, deadline)
        declared = self._declared[name]
        if declared is None:
            return [self.infer(model, part, deadline=deadline) for model in models]
        done: dict[str, str] = {}
        if self._downscale and wire.RESIZE in declared.parameters:
            part, done = downscaled(part, str(declared.parameters[wire.RESIZE]))
        pieces = deque(declared.pieces(part))
        replies: list[list[Reply]] = []
        while pieces:
            piece = pieces.popleft()
            try:
                answer = self.send(declared, piece, deadline)
            except TooLargeError:
                if len(piece) == 1:
                    raise
                declared = replace(declared, max_batch=len(piece) // 2)
                self._declared[name] = declared  # so that the next part is not sent in vain
                pieces.extendleft(reversed(list(declared.pieces(piece))))
            else:
                replies.append(read_replies(answer, len(piece), len(models)))
        whole = [joined(column) for column in zip(*replies, strict=True)]
        return [replace(reply, provenance={**reply.provenance, **done}) for reply in whole] if done else whole

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
    def send(self, declared: Declared, part: Part, deadline: float) -> Answer:
        """Have a part scored by one request."""

    @abstractmethod
    def index(self, deadline: float) -> list[dict[str, Any]]:
        """Return the server's models: "name" and, where it says so, "state"."""

    @abstractmethod
    def metadata(self, model: str, deadline: float) -> dict[str, Any]:
        """Return a model's metadata in the protocol's form of JSON."""

    @abstractmethod
    def config(self, model: str, deadline: float) -> dict[str, Any]:
        """Return a model's configuration in the form of Triton's extension."""

    def _find(self, rewards: Sequence[str], deadline: float) -> Declared | None:
        """Return what the server says of rewards together; None where it has no such model of several."""
        if len(rewards) > 1:
            try:
                return self._describe("+".join(rewards), deadline)
            except RequestError:
                return None
        (reward,) = rewards
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


def read_replies(answer: Answer, count: int, width: int) -> list[Reply]:
    """Return the reply of each of `width` rewards that an answer means for `count` items.

    Raises:
        RequestError: it means none.
    """
    try:
        scores = _columns(answer, wire.SCORES, "f", width)
        errors = _columns(answer, wire.ERRORS, "O", width)
        objects = _columns(answer, wire.DETAILS, "O", width)  # not every server of the protocol has them
        details = [
            {i: wire.decode_object(raw, "details") for i, raw in enumerate(column) if raw}
            for column in objects
        ]
        provenance = _provenance(answer, width)
    except (wire.WireError, ItemError) as error:
        raise malformed(answer.source, error) from error
    if len(scores[0]) != count or not {len(errors[0]), len(objects[0])} <= {0, count}:
        raise RequestError(
            f"{answer.source} answered with {len(scores[0])} scores, {len(errors[0])} errors and "
            f"{len(objects[0])} details for {count} items"
        )
    texts = [{i: raw.decode(errors="replace") for i, raw in enumerate(column) if raw} for column in errors]
    return [Reply(*each) for each in zip(scores, texts, provenance, details, strict=True)]


def malformed(source: str, error: Exception) -> RequestError:
    """Return the error that an answer which cannot be read means."""
    return RequestError(f"{source} answered with a malformed message: {error}")


def _columns(answer: Answer, name: str, kind: str, width: int) -> list[list[Any]]:
    """Return a tensor's values by reward, one an item; nothing where there is no such tensor."""
    if name not in answer.tensors:
        return [[] for _ in range(width)]
    tensor = answer.tensors[name]
    tensor = wire.per_item(tensor, name)[:, None] if width == 1 else tensor
    if tensor.ndim != 2 or tensor.shape[1] != width:
        raise wire.WireError(f"tensor {name!r} must be [N,{width}], got {list(tensor.shape)}")
    if tensor.dtype.kind != kind:
        raise wire.WireError(f"tensor {name!r} cannot be of dtype {tensor.dtype}")
    return [list(column.tolist()) for column in tensor.T]


def _provenance(answer: Answer, width: int) -> list[Mapping[str, Any]]:
    """Return what each reward's scores rest on; of several it is JSON, by the full names that are joined."""
    if width == 1:
        (column,) = _columns(answer, wire.PROVENANCE, "O", 1)
        notes = [note for note in column if note][:1]
        return [{**answer.parameters, **(wire.decode_object(notes[0], "provenance") if notes else {})}]
    by_name = wire.decode_object(answer.parameters.get("provenance", "{}"), "provenance")
    names = answer.model.split("+")
    if len(names) != width:
        raise wire.WireError(f"'model_name' must join {width} names with '+', got {answer.model!r:.80}")
    return [by_name.get(name, {}) for name in names]
