"""The routes of the Open Inference Protocol (KServe v2) for the rewards of a host.

Source: the KServe "Open Inference Protocol" REST specification, and Triton's extensions to it for
binary tensors and the model repository's index.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rewardzoo import __version__
from rewardzoo.clients import wire
from rewardzoo.clients.wire import Message
from rewardzoo.errors import ItemError, NotServedError, OverloadedError, RequestError
from rewardzoo.services import compat, inference, limits
from rewardzoo.services.batcher import Item
from rewardzoo.services.exchange import Deadline, answer, read_body, unless_gone
from rewardzoo.services.gate import METRICS
from rewardzoo.services.tracing import span

if TYPE_CHECKING:
    from rewardzoo.services.config import ServeConfig
    from rewardzoo.services.host import Host, HostedReward
    from rewardzoo.services.metrics import Metrics
    from rewardzoo.services.workers import Shelf

# What the body of a request to the repository may have.
_MAX_ORDER, _ORDER_TIMEOUT = 65_536, 5.0


def make_app() -> Starlette:
    """Return the ASGI app. Its `state.host` must be set before it is asked anything."""
    models = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    return Starlette(
        routes=[
            Route(METRICS, _metrics),
            Route("/v2", _route(_server)),
            Route("/v2/health/live", _route(_health)),
            Route("/v2/health/ready", _route(_health)),
            Route("/v2/repository/index", _route(_index), methods=["POST"]),
            Route("/v2/repository/models/{model}/load", _route(_load), methods=["POST"]),
            Route("/v2/repository/models/{model}/unload", _route(_unload), methods=["POST"]),
            *(Route(path, _route(_metadata)) for path in models),
            *(Route(f"{path}/ready", _route(_model_ready)) for path in models),
            *(Route(f"{path}/infer", _route(_infer), methods=["POST"]) for path in models),
            *compat.routes(),
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


async def _metrics(request: Request) -> Response:
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.exposition(), media_type=metrics.content_type)


async def _health(_: Request, host: Host) -> Response:
    # A lost device comes back with a new process only, so such a server is not live either.
    return Response(status_code=200 if host.ready else 503)


async def _index(request: Request, host: Host) -> Response:
    only_ready = await _asks_for_ready(request)
    return JSONResponse(
        [
            {
                "name": name,
                "version": inference.VERSION,
                "state": reward.shown_state,
                "reason": reward.failure,
            }
            for name, reward in host.rewards.items()
            if reward.ready or not only_ready
        ]
    )


async def _asks_for_ready(request: Request) -> bool:
    body = await read_body(request, _MAX_ORDER, Deadline(_ORDER_TIMEOUT))
    try:
        return wire.decode_object(bytes(body).decode(errors="replace"), "body").get("ready") is True
    except ItemError as error:
        raise RequestError(str(error)) from error


async def _load(request: Request, host: Host) -> Response:
    return await _order(request, host, host.pool.load)


async def _unload(request: Request, host: Host) -> Response:
    return await _order(request, host, host.pool.unload)


async def _order(request: Request, host: Host, do: Callable[[HostedReward], Awaitable[None]]) -> Response:
    if host.config.token is None:
        error = "models are loaded and unloaded only where a token keeps others out: set REWARDZOO_TOKEN"
        return JSONResponse({"error": error}, 403)
    await do(host.find(request.path_params["model"]))
    return Response()


async def _metadata(request: Request, host: Host) -> Response:
    return JSONResponse(inference.metadata(_find(request, host)))


async def _model_ready(request: Request, host: Host) -> Response:
    return Response(status_code=200 if all(reward.ready for reward in _find(request, host)) else 503)


async def _infer(request: Request, host: Host) -> Response:
    rewards = _find(request, host)
    deadline = Deadline.of(request, host.config.timeout)
    with host.admission.enter() as hold:
        try:
            for reward in rewards:
                reward.check_room()  # before the body is read: an overloaded server has better things to do
            with span("receive"):
                body = await read_body(request, host.config.max_body, deadline, hold)
        except OverloadedError:
            for reward in rewards:
                host.observer.scored(reward.name, "refused", 1)
            raise
        host.observer.received(len(body))
        return await _score(request, host, rewards, body, deadline)


async def _score(
    request: Request,
    host: Host,
    rewards: Sequence[HostedReward],
    body: bytes | bytearray,
    deadline: Deadline,
) -> Response:
    length = wire.parse_json_length(request.headers.get(wire.HEADER))
    with span("decode"):
        # In a thread: a large body takes a while, and probes must be answered meanwhile.
        message, items = await asyncio.to_thread(_decode, body, length, len(rewards), host.shelf, host.config)
    outcomes = await unless_gone(request, host.score(rewards, items, deadline))
    chunks, length = inference.write_answer(message, rewards, outcomes)
    kind: dict[str, Any] = {"media_type": "application/json"}
    if length is not None:
        kind = {"media_type": "application/octet-stream", "headers": {wire.HEADER: str(length)}}
    return Response(b"".join(chunks), **kind)


def _decode(
    body: bytes | bytearray, length: int | None, rewards: int, shelf: Shelf, config: ServeConfig
) -> tuple[Message, list[Item | ItemError]]:
    limits.check_json(len(body) if length is None else length, config)
    message = wire.decode(body, length, key="inputs", max_texts=config.max_items)
    limits.check_message(message, config)
    wire.requested_outputs(message.header, inference.OUTPUTS)  # refuse before the work, not after
    return message, limits.admit(inference.read_items(message, rewards, shelf), config)


def _find(request: Request, host: Host) -> list[HostedReward]:
    rewards = host.find_all(request.path_params["model"])
    version = request.path_params.get("version", inference.VERSION)
    if version != inference.VERSION:
        name = inference.joined(rewards)
        raise NotServedError(f"{name} has no version {version!r:.40}, only {inference.VERSION!r}")
    return rewards
