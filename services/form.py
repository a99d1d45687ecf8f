"""The `score` endpoint for curl and BentoML's own client: a multipart form in, JSON out."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bentoml import IODescriptor
from pydantic import Field
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rewardzoo.clients.wire import check_prompt
from rewardzoo.errors import ItemError, RequestError
from rewardzoo.services.batcher import Item
from rewardzoo.services.exchange import Deadline, read_body, unless_gone

if TYPE_CHECKING:
    from rewardzoo.services.host import Host

_MAX_FILES = 10_000


class ScoreForm(IODescriptor):  # type: ignore[misc]  # BentoML exports it untyped
    """What `score` takes. BentoML shows it on its page and its client sends it."""

    images: list[Path] = Field(description="PNG, JPEG or WebP files")
    prompts: list[str] = Field(description="a JSON list, one prompt an image")
    reward: str = Field(description="a reward that is served here, e.g. hpsv2:mini")

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Self:
        """Leave the request unread for `score_form`.

        BentoML would read it without a limit, fetch an image that is given as a URL, and answer a
        damaged one with an error for all.
        """
        unread: Self = cls.model_construct(images=[], prompts=[], reward="")
        return unread


class ScoreReply(IODescriptor):  # type: ignore[misc]
    """What `score` answers."""

    reward: str
    scores: list[float | None] = Field(description="one an image, null where it failed")
    errors: dict[int, str] = Field(description="why, by the image's place")
    provenance: dict[str, str] = Field(description="what the scores rest on")


async def score_form(request: Request, host: Host) -> Response:
    """Score the images of a multipart form.

    Raises:
        RequestError: not such a form, or not one prompt an image.
        NotServedError, and what the batcher and the body raise.
    """
    deadline = Deadline(host.config.timeout)
    body = await read_body(request, host.config.max_body, deadline)
    form = await _parse(request, body)
    try:
        reward = host.find(_text(form, "reward"))
        images = await _files(form, "images")
        prompts = _prompts(_text(form, "prompts"))
    finally:
        await form.close()
    if len(images) != len(prompts):
        raise RequestError(f"{len(images)} images and {len(prompts)} prompts: send one prompt an image")
    items = [_item(*pair) for pair in zip(images, prompts, strict=True)]
    outcomes = await unless_gone(request, reward.score(items, deadline.left))
    return JSONResponse(
        {
            "reward": reward.model.name,
            "scores": [None if isinstance(o, ItemError) else o for o in outcomes],
            "errors": {i: str(o) for i, o in enumerate(outcomes) if isinstance(o, ItemError)},
            "provenance": reward.model.provenance(),
        }
    )


async def _parse(request: Request, body: bytes | bytearray) -> FormData:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError("send multipart/form-data with the fields images, prompts and reward")

    async def once() -> AsyncGenerator[bytes, None]:
        yield bytes(body)

    # The body's own limit is the one that counts, so none of the parser's may be met before.
    parser = MultiPartParser(request.headers, once(), max_files=_MAX_FILES, max_part_size=len(body) + 1)
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise RequestError(f"the form is malformed: {error.message}") from error


async def _files(form: FormData, name: str) -> list[bytes]:
    values = form.getlist(name)
    if not all(isinstance(value, UploadFile) for value in values):
        raise RequestError(f"{name!r} must be files (curl -F {name}=@picture.png), never a URL or a path")
    return [await value.read() for value in values if isinstance(value, UploadFile)]


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    if not isinstance(value, str):
        raise RequestError(f"the field {name!r} is missing or a file, it must be text")
    # BentoML's client sends text as JSON, curl sends it bare.
    return value.strip('"') if name == "reward" else value


def _prompts(text: str) -> list[str]:
    try:
        prompts = json.loads(text)
    except (ValueError, RecursionError):
        prompts = None
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise RequestError(f"'prompts' must be a JSON list of strings, e.g. [\"a cat\"], got {text!r:.80}")
    return prompts


def _item(image: bytes, prompt: str) -> Item | ItemError:
    try:
        check_prompt(prompt)
    except ItemError as error:
        return error
    return Item(image, prompt)
