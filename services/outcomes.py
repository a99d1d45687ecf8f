"""What a reward says of an item, as others may be told it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rewardzoo.clients import wire
from rewardzoo.errors import ItemError

if TYPE_CHECKING:
    from rewardzoo.rewards import Outcome


def plain(outcome: Outcome) -> Outcome:
    """Return an outcome with its details as JSON has them, or the error that they cannot be told."""
    if isinstance(outcome, ItemError) or not outcome.details:
        return outcome
    try:
        return replace(outcome, details=wire.plain(outcome.details))
    except ItemError as error:
        return error
