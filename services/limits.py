"""What a request may not exceed, beside the size of its body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rewardzoo.clients import wire
from rewardzoo.clients.images import check_file, check_size
from rewardzoo.clients.wire import Message
from rewardzoo.errors import ItemError, TooLargeError
from rewardzoo.services.workers import Encoded

if TYPE_CHECKING:
    from rewardzoo.services.batcher import Item
    from rewardzoo.services.config import ServeConfig


def check_json(size: int, config: ServeConfig) -> None:
    """Refuse JSON of `size` bytes before it is parsed.

    Raises:
        TooLargeError: it is more than `config.max_json_mb`.
    """
    if size > config.max_json:
        raise TooLargeError(
            f"the request has {size:,} bytes of JSON, the limit is {config.max_json:,}: send images and "
            "texts as binary tensors or fewer at once, or raise max_json_mb on the server"
        )


def check_message(message: Message, config: ServeConfig) -> None:
    """Refuse metadata that would be too much JSON in sum.

    Raises:
        TooLargeError: it is more than `config.max_json_mb`.
    """
    metadata = message.tensors.get(wire.METADATA)
    if metadata is not None and metadata.dtype == object:
        check_json(sum(map(len, metadata.flat)), config)


def check_count(count: int, config: ServeConfig) -> None:
    """Refuse a request of too many items.

    Raises:
        TooLargeError: it has more than `config.max_items`.
    """
    if count > config.max_items:
        raise TooLargeError(
            f"the request has {count:,} items, the limit is {config.max_items:,}: send fewer at once, or "
            "raise max_items on the server"
        )


def admit(items: Sequence[Item | ItemError], config: ServeConfig) -> list[Item | ItemError]:
    """Return the items, an error in place of each that no reward can score: by its prompt, or its image.

    An image file is judged by its header, before any pixel of it is decoded.

    Raises:
        TooLargeError: there are too many.
    """
    check_count(len(items), config)
    return [item if isinstance(item, ItemError) else _admit(item, config) for item in items]


def _admit(item: Item, config: ServeConfig) -> Item | ItemError:
    try:
        wire.check_prompt(item.prompt, config.max_prompt_bytes)
        image = item.image.data if isinstance(item.image, Encoded) else item.image
        if isinstance(image, bytes):
            check_file(image, config.max_pixels)
        else:
            check_size(image.shape[1], image.shape[0], config.max_pixels)
    except ItemError as error:
        return error
    return item
