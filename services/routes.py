"""The routes of the Open Inference Protocol (KServe v2) for the rewards of a host.

Source: the KServe "Open Inference Protocol" REST specification, and Triton's extensions to it for
binary tensors and the model repository's index.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rewardzoo import __version__
from rewardzoo.clients import wire
from rewardzoo.clients.wire import Message
from rewardzoo.errors import ItemError, NotServedError
from rewardzoo.services import inference
from rewardzoo.services.batcher import Item
from rewardzoo.services.exchange import Deadline, answer, read_body, unless_gone

if TYPE_CHECKING:
    from rewardzoo.services.host import Host, HostedReward


def make_app() -> Starlette:
    """Return the ASGI app. Its `state.host` must be set before it is asked anything."""
    models = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    return Starlette(
        routes=[
            Route("/v2", _route(_server)),
            Route("/v2/health/live", _route(_health)),
            Route("/v2/health/ready", _route(_health)),
            Route("/v2/repository/index", _route(_index), methods=["POST"]),
            *(Route(path, _route(_metadata)) for path in models),
            *(Route(f"{path}/ready", _route(_model_ready)) for path in models),
            *(Route(f"{path}/infer", _route(_infer), methods=["POST"]) for path in models),
        ]
    )


Handler = Callable[[Request, "Host"], Awaitable[Response]]


def _route(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await answer(handler(request, request.app.state.host))

    return endpoint


async def _server(_: Request, __: Host) -> Response:
    extensions = ["binary_tensor_data", "model_repository"]
    return JSONResponse({"name": "rewardzoo", "version": __version__, "extensions": extensions})


async def _health(_: Request, host: Host) -> Response:
    # A lost device comes back with a new process only, so such a server is not live either.
    return Response(status_code=200 if host.ready else 503)


async def _index(_: Request, host: Host) -> Response:
    return JSONResponse(
        [
            {
                "name": name,
                "version": inference.VERSION,
                "state": "READY" if reward.ready else "UNAVAILABLE",
                "reason": str(reward.batcher.failure or ""),
            }
            for name, reward in host.rewards.items()
        ]
    )


async def _metadata(request: Request, host: Host) -> Response:
    return JSONResponse(inference.metadata(_find(request, host).model))


async def _model_ready(request: Request, host: Host) -> Response:
    return Response(status_code=200 if _find(request, host).ready else 503)


async def _infer(request: Request, host: Host) -> Response:
    reward = _find(request, host)
    deadline = Deadline(host.config.timeout)
    body = await read_body(request, host.config.max_body, deadline)
    length = wire.parse_json_length(request.headers.get(wire.HEADER))
    # In a thread: a large body takes a while, and probes must be answered meanwhile.
    message, items = await asyncio.to_thread(_decode, body, length)
    outcomes = await unless_gone(request, reward.score(items, deadline.left))
    chunks, length = inference.write_answer(message, reward.model, outcomes)
    kind: dict[str, Any] = {"media_type": "application/json"}
    if length is not None:
        kind = {"media_type": "application/octet-stream", "headers": {wire.HEADER: str(length)}}
    return Response(b"".join(chunks), **kind)


def _decode(body: bytes | bytearray, length: int | None) -> tuple[Message, list[Item | ItemError]]:
    message = wire.decode(body, length, key="inputs")
    wire.requested_outputs(message.header, inference.OUTPUTS)  # refuse before the work, not after
    return message, inference.read_items(message)


def _find(request: Request, host: Host) -> HostedReward:
    reward = host.find(request.path_params["model"])
    version = request.path_params.get("version", inference.VERSION)
    if version != inference.VERSION:
        raise NotServedError(
            f"{reward.model.name} has no version {version!r:.40}, only {inference.VERSION!r}"
        )
    return reward
