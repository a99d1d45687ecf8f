from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rewardzoo.clients.adapters._columns import Columns, image_of, prompt_of, to_uint8
from rewardzoo.clients.images import as_payload, decode_image
from rewardzoo.errors import ItemError

RED = Image.new("RGB", (4, 3), "red")


def file_of(kind: str) -> bytes:
    file = io.BytesIO()
    RED.save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


PNG = file_of("PNG")
TEXT = base64.b64encode(PNG).decode()
TENSOR = torch.from_numpy(np.asarray(RED).copy()).permute(2, 0, 1)


@pytest.mark.parametrize(
    "value",
    [
        RED,
        [RED],
        (PNG,),
        {"bytes": PNG, "path": None},
        {"type": "image", "image": RED},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{TEXT}"}},
        TEXT,
        base64.b64encode(file_of("WEBP")).decode(),
        TENSOR,
        TENSOR[None],
        [TENSOR[None].float() / 255],
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_image_is_found_in_every_form_of_a_row(value: Any) -> None:
    payload = as_payload(image_of(value))
    pixels = decode_image(payload) if isinstance(payload, bytes) else payload
    assert pixels.shape == (3, 4, 3)
    assert (pixels == (255, 0, 0)).all()


def test_a_jpeg_in_base64_is_told_from_a_path(tmp_path: Path) -> None:
    jpeg = file_of("JPEG")
    assert image_of(base64.b64encode(jpeg).decode()) == jpeg
    assert image_of("/9j/picture.jpg") == "/9j/picture.jpg"
    assert image_of({"bytes": None, "path": "a.png"}) == "a.png"


@pytest.mark.parametrize("value", [None, [RED, RED], {"caption": "x"}, "data:image/png;base64,%%%", 3])
def test_what_is_no_image_is_refused_as_an_item_and_not_as_a_batch(value: Any) -> None:
    with pytest.raises(ItemError):
        as_payload(image_of(value))


def test_the_prompt_of_a_conversation_is_what_its_user_said_last() -> None:
    conversation: list[dict[str, Any]] = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a cat"}]},
        {"role": "assistant", "content": "done"},
    ]
    assert prompt_of(conversation) == "a cat"
    assert prompt_of(conversation[:2]) == "first"
    assert prompt_of("plain") == "plain"
    with pytest.raises(ValueError, match="no message of the role 'user'"):
        prompt_of([{"role": "system", "content": "x"}])


def test_metadata_comes_from_a_column_of_objects_or_from_several_columns() -> None:
    columns = {"p": ["a", "b"], "i": [1, 2], "m": [{"k": 1}, '{"k": 2}'], "x": [3, 4], "y": [5, 6]}
    assert Columns("i", "p").of(columns) == ([1, 2], ["a", "b"], None)
    assert Columns("i", "p", "m").of(columns)[2] == [{"k": 1}, {"k": 2}]
    assert Columns("i", "p", ["x", "y"]).of(columns)[2] == [{"x": 3, "y": 5}, {"x": 4, "y": 6}]
    assert Columns(lambda found: found["x"], "p").of(columns)[0] == [3, 4]
    with pytest.raises(ValueError, match=r"no column 'image': there are i, m, p, x, y"):
        Columns("image", "p").of(columns)
    with pytest.raises(ValueError, match="metadata must be an object"):
        Columns("i", "p", "x").of(columns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floats_become_pixels_exactly_as_the_diffusion_trainers_do_it(dtype: torch.dtype) -> None:
    images = (torch.rand(5, 3, 7, 6, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1).to(dtype)
    upstream = (images * 255).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(torch.stack(list(to_uint8(images))), upstream)


def test_an_image_with_nan_is_left_for_the_client_to_refuse() -> None:
    images = torch.rand(3, 3, 4, 4)
    images[1, 0, 0, 0] = torch.nan
    good, bad, _ = to_uint8(images)
    as_payload(good)
    with pytest.raises(ItemError, match="NaN"):
        as_payload(bad)


def test_uint8_and_lists_are_handed_on() -> None:
    array = np.zeros((2, 4, 4, 3), np.uint8)
    assert to_uint8(array) is array
    assert to_uint8([RED]) == [RED]
    assert to_uint8(TENSOR[None]).dtype == torch.uint8
