"""The `score` endpoint for curl and BentoML's own client: a multipart form in, JSON out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from bentoml import IODescriptor
from pydantic import Field
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rewardzoo.clients import wire
from rewardzoo.errors import ItemError, RequestError
from rewardzoo.services.batcher import Item
from rewardzoo.services.exchange import Deadline, read_body, unless_gone
from rewardzoo.services.limits import admit, check_json
from rewardzoo.services.tracing import span
from rewardzoo.services.workers import Encoded

if TYPE_CHECKING:
    from rewardzoo.rewards import Outcome
    from rewardzoo.services.host import Host
    from rewardzoo.services.hosted import HostedReward

_MAX_FILES = 10_000
T = TypeVar("T")


class ScoreForm(IODescriptor):  # type: ignore[misc]  # BentoML exports it untyped
    """What `score` takes. BentoML shows it on its page and its client sends it."""

    images: list[Path] = Field(description="PNG, JPEG or WebP files")
    prompts: list[str] = Field(description="a JSON list, one prompt an image")
    reward: str = Field(description="a reward that is served here, e.g. hpsv2:mini, or several joined by +")
    metadata: list[dict[str, Any]] = Field([], description="optional, a JSON list, one object an image")

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Self:
        """Leave the request unread for `score_form`.

        BentoML would read it without a limit, fetch an image that is given as a URL, and answer a
        damaged one with an error for all.
        """
        unread: Self = cls.model_construct(images=[], prompts=[], reward="", metadata=[])
        return unread


class ScoreReply(IODescriptor):  # type: ignore[misc]
    """What `score` answers; to several rewards `{"rewards": {name: one of these}}`."""

    reward: str
    scores: list[float | None] = Field(description="one an image, null where it failed")
    errors: dict[int, str] = Field(description="why, by the image's place")
    details: list[dict[str, Any]] = Field(description="one an image, what the reward has to say beside")
    provenance: dict[str, str] = Field(description="what the scores rest on")


async def score_form(request: Request, host: Host) -> Response:
    """Score the images of a multipart form.

    Raises:
        RequestError: not such a form, or not one prompt, or one metadata, an image.
        NotServedError, and what the batcher and the body raise.
    """
    deadline = Deadline.of(request, host.config.timeout)
    with host.admission.enter() as hold:
        with span("receive"):
            body = await read_body(request, host.config.max_body, deadline, hold)
        host.observer.received(len(body))
        return await _score(request, host, body, deadline)


async def _score(request: Request, host: Host, body: bytes | bytearray, deadline: Deadline) -> Response:
    form = await _parse(request, body)
    try:
        check_json(sum(len(value) for _, value in form.multi_items() if isinstance(value, str)), host.config)
        name = _text(form, "reward")
        rewards = host.find_all(name)
        images = await _files(form, "images")
        prompts = _list(form, "prompts", str, '["a cat"]')
        metadata = _list(form, "metadata", dict, '[{"step": 3}]') if form.get("metadata") else []
    finally:
        await form.close()
    if len(images) != len(prompts):
        raise RequestError(f"{len(images)} images and {len(prompts)} prompts: send one prompt an image")
    if metadata and len(images) != len(metadata):
        raise RequestError(f"{len(images)} images and {len(metadata)} metadata: send one an image, or none")
    notes = metadata or [{}] * len(images)
    shared: Sequence[bytes | Encoded] = images
    if len(rewards) > 1:
        shared = [Encoded(image, len(rewards), host.shelf) for image in images]
    given = [make_item(*parts) for parts in zip(shared, prompts, notes, strict=True)]
    with span("decode"):
        # In a thread, because it reads the head of every file.
        items = await asyncio.to_thread(admit, given, host.config)
    outcomes = await unless_gone(request, host.score(rewards, items, deadline))
    replies = [_reply(*found) for found in zip(rewards, outcomes, strict=True)]
    if len(replies) == 1:
        return JSONResponse(replies[0])
    return JSONResponse({"rewards": {reply["reward"]: reply for reply in replies}})


def _reply(reward: HostedReward, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "reward": reward.name,
        "scores": [None if isinstance(o, ItemError) else o.value for o in outcomes],
        "errors": {i: str(o) for i, o in enumerate(outcomes) if isinstance(o, ItemError)},
        "details": [{} if isinstance(o, ItemError) else o.details for o in outcomes],
        "provenance": reward.provenance(),
    }


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


def _list(form: FormData, name: str, kind: type[T], example: str) -> list[T]:
    text = _text(form, name)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        what = "strings" if kind is str else "objects"
        raise RequestError(f"{name!r} must be a JSON list of {what}, e.g. {example}, got {text!r:.80}")
    return values


def make_item(image: bytes | Encoded, prompt: str, metadata: Mapping[str, Any]) -> Item | ItemError:
    """Return what is to be scored, or why it cannot be."""
    try:
        wire.check_prompt(prompt)
    except ItemError as error:
        return error
    return Item(image, prompt, metadata)
