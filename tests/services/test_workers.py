from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from rewardzoo.errors import ItemError
from rewardzoo.services import workers as module
from rewardzoo.services.workers import Encoded, Shelf, Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    pool = Workers(2)
    yield pool
    pool.stop()


def png(value: int = 7, size: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value,) * 3).save(file, "PNG")
    return file.getvalue()


def test_items_are_worked_on_in_parallel_and_keep_their_order(workers: Workers) -> None:
    both = threading.Barrier(2)

    def meet(number: int) -> int:
        both.wait(10)  # passes only when another thread is at another item
        return number * 2

    assert workers.each(meet, range(8)) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_lone_item_and_none_need_no_other_thread(workers: Workers) -> None:
    assert workers.each(lambda _: threading.get_ident(), [1]) == [threading.get_ident()]
    assert workers.each(lambda _: 1, []) == []


def test_a_pool_that_is_busy_does_not_hold_others_up(workers: Workers) -> None:
    go, busy = threading.Event(), threading.Semaphore(0)

    def block(_: int) -> None:
        busy.release()
        go.wait(10)

    other = threading.Thread(target=workers.each, args=(block, range(30)))
    other.start()
    assert busy.acquire(timeout=10)
    assert busy.acquire(timeout=10)
    assert workers.each(lambda n: n + 1, range(5)) == [1, 2, 3, 4, 5]
    go.set()
    other.join(10)


def test_what_an_item_raises_is_raised(workers: Workers) -> None:
    with pytest.raises(ZeroDivisionError):
        workers.each(lambda n: 1 // n, [1, 0, 1, 1])
    with pytest.raises(IndexError):
        workers.each(lambda n: [][n], [0])


def test_an_image_that_several_rewards_score_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    decode = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda data: decoded.append(data) or decode(data))
    shelf = Shelf(1000)
    image = Encoded(png(), 3, shelf)
    first, *others = [image.pixels() for _ in range(3)]
    assert all(other is first for other in others)
    assert len(decoded) == 1
    assert shelf.held == 0  # the last one takes it away


def test_the_shelf_holds_no_more_than_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(100)
    images = [Encoded(png(value), 2, shelf) for value in (1, 2, 3)]
    for image in images:
        image.pixels()
        assert shelf.held <= 100  # 48 bytes each
    values = [int(image.pixels()[0, 0, 0]) for image in images]  # the first is decoded again
    assert values == [1, 2, 3]
    assert shelf.held == 0


def test_an_image_larger_than_the_shelf_is_not_kept() -> None:
    shelf = Shelf(10)
    image = Encoded(png(), 2, shelf)
    np.testing.assert_array_equal(image.pixels(), image.pixels())
    assert shelf.held == 0


def test_images_that_nobody_asks_for_again_are_dropped() -> None:
    shelf = Shelf(1000)
    image = Encoded(png(), 2, shelf)
    image.pixels()
    shelf.drop([image])
    assert shelf.held == 0


def test_a_damaged_file_fails_for_each_reward() -> None:
    image = Encoded(b"junk", 2, Shelf(1000))
    for _ in range(2):
        with pytest.raises(ItemError, match="not an image"):
            image.pixels()
