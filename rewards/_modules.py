"""The weights of a module that was pickled whole, without its classes and without running its code.

`torch.save(model)` writes a pickle of the model's objects, which names their classes. Unpickling it imports
those classes and calls what the pickle says. Here PyTorch's restricted unpickler (`weights_only=True`) reads
it, and an empty class stands in for every name that this unpickler does not know. A stand-in can be made and
be given a dictionary of attributes, which is all that a plain module needs; it cannot be called.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from rewardzoo.errors import WeightsError

_lock = threading.Lock()  # PyTorch's list of safe names is the process's


def read_module(path: Path) -> dict[str, Tensor]:
    """Return the state dict of the module pickled in `path`, tensors memory-mapped.

    Raises:
        WeightsError: not a PyTorch archive that holds a module, or something in it is not a plain object.
    """
    try:
        with _lock:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
            with torch.serialization.safe_globals([(_stand_in(name), name) for name in names]):
                root = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(root, _StandIn):
            raise WeightsError(f"it holds a {type(root).__name__}, not a module")
        return dict(_tensors(root, "", ()))
    except Exception as error:
        raise WeightsError(f"{path} is not a pickled module that can be read safely: {error}") from error


class _Uncallable(type):
    """The class of stand-ins: a pickle may make an object of one, and never call it with arguments."""

    def __call__(cls, *_: Any, **__: Any) -> NoReturn:
        raise WeightsError(f"it calls {cls.__name__}")


class _StandIn(metaclass=_Uncallable):
    # Slots, so that a pickle cannot hang a method of its choice on an object.
    __slots__ = ("state",)

    def __new__(cls, *args: Any) -> Self:
        if args:
            raise WeightsError(f"it makes a {cls.__name__} of arguments")
        self = super().__new__(cls)
        self.state = {}
        return self

    state: dict[str, Any]

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise WeightsError(f"the state of a {type(self).__name__} is a {type(state).__name__}")
        self.state = state


def _stand_in(name: str) -> type[_StandIn]:
    class StandIn(_StandIn):
        __slots__ = ()

    StandIn.__name__ = StandIn.__qualname__ = name
    return StandIn


def _tensors(module: object, prefix: str, above: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """Yield what `nn.Module.state_dict` would."""
    if not isinstance(module, _StandIn):
        raise WeightsError(f"{prefix or 'the root'} is a {type(module).__name__}, not a module")
    if id(module) in above:
        raise WeightsError(f"{prefix} holds itself")
    transient = dict.get(module.state, "_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for key, tensor in _entries(module, kind, prefix):
            if tensor is None or key in transient:
                continue
            if not isinstance(tensor, Tensor):
                raise WeightsError(f"{prefix}{key} is a {type(tensor).__name__}, not a tensor")
            yield prefix + key, Tensor.detach(tensor)
    for key, child in _entries(module, "_modules", prefix):
        if child is not None:
            yield from _tensors(child, f"{prefix}{key}.", (*above, id(module)))


def _entries(module: _StandIn, kind: str, prefix: str) -> list[tuple[str, Any]]:
    # By way of `dict`, because a pickle can hang attributes on an OrderedDict, such as an `items` of its own.
    found = dict.get(module.state, kind)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise WeightsError(f"{prefix or 'the root'} has no {kind}: not a module")
    return list(dict.items(found))
