"""A key-value cache for sampling a known number of tokens after prompts that repeat."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RoomyCache(Cache):
    """A cache of which rows can be let go."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, int64 (B,)."""
        for layer in self.layers:
            cast(_RoomyLayer, layer).keep(rows)


def with_room(prefix: Any, rows: Tensor, room: int) -> RoomyCache:
    """Spread a `DynamicCache` of U prompts over B rows, with room for more tokens.

    `rows`, int64 (B,), names each row's prompt; `room` is the number of tokens that will follow.
    """
    return RoomyCache(layers=[_RoomyLayer(layer.keys, layer.values, rows, room) for layer in prefix.layers])


class _RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values in buffers of the final length: a step writes its own token and copies nothing else.

    What attention reads is the written part alone, so an early step does not pay for the later ones, as it
    does with `StaticCache`.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers = (_spread(keys, rows, room), _spread(values, rows, room))
        self._length = keys.shape[-2]
        self.keys, self.values = self._written()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append states (B, H, T, D); return all so far."""
        start, self._length = self._length, self._length + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self._length] = states
        self.keys, self.values = self._written()
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        """Let go of all rows but these."""
        self._buffers = (self._buffers[0][rows], self._buffers[1][rows])
        self.keys, self.values = self._written()

    def _written(self) -> tuple[Tensor, Tensor]:
        keys, values = self._buffers
        return keys[:, :, : self._length], values[:, :, : self._length]


def _spread(states: Tensor, rows: Tensor, room: int) -> Tensor:
    """Copy states of U prompts (U, H, L, D) into a buffer (B, H, L + room, D)."""
    _, heads, length, width = states.shape
    buffer = states.new_empty(len(rows), heads, length + room, width)
    buffer[:, :, :length] = states[rows]
    return buffer
