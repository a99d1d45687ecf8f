"""What the engine tells about itself while it works."""

from __future__ import annotations

from typing import Literal, Protocol

Fate = Literal["ok", "item_error", "dropped", "refused", "expired"]
"""How an item ended: scored, failed alone, its caller gone, no room for it, its time up."""


class Observer(Protocol):
    """Called on the thread of the event loop, so it must not block."""

    def waited(self, reward: str, seconds: float) -> None:
        """An item left the queue after so long."""

    def ran(self, reward: str, items: int, seconds: float) -> None:
        """One batch was on the device for so long."""

    def scored(self, reward: str, outcome: Fate, items: int) -> None:
        """So many items ended so. Of a request refused before it was read, one is counted."""

    def queued(self, reward: str, items: int) -> None:
        """So many items wait now."""

    def received(self, size: int) -> None:
        """A request's body had so many bytes, decompressed."""

    def loaded(self, reward: str, seconds: float) -> None:
        """A reward was loaded, which took so long."""

    def evicted(self, reward: str) -> None:
        """A reward's weights were given up."""


class Silent:
    """The observer that notes nothing."""

    def waited(self, reward: str, seconds: float) -> None:
        """Ignore it."""

    def ran(self, reward: str, items: int, seconds: float) -> None:
        """Ignore it."""

    def scored(self, reward: str, outcome: Fate, items: int) -> None:
        """Ignore it."""

    def queued(self, reward: str, items: int) -> None:
        """Ignore it."""

    def received(self, size: int) -> None:
        """Ignore it."""

    def loaded(self, reward: str, seconds: float) -> None:
        """Ignore it."""

    def evicted(self, reward: str) -> None:
        """Ignore it."""
