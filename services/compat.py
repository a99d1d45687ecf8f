"""Routes that other projects' reward clients ask already: OpenRLHF, Flow-Factory and UniRL.

Each is off unless `REWARDZOO_COMPAT` names it, and stands under its name, so that none takes `/score` or
`/health` from another: OpenRLHF is given the URL `…/openrlhf/get_reward`, Flow-Factory the server
`…/flow_factory`, UniRL the server `…/unirl`. The first two name no reward in what they send: where several
are hosted it stands in the URL, `…/openrlhf/hpsv2:mini/get_reward`.

JSON and base64 alone: no pickle, no path or URL that the server would open.

Source: OpenRLHF's `openrlhf/utils/agent.py` and `cli/serve_rm.py`; Flow-Factory's
`src/flow_factory/rewards/my_reward_remote.py` and `reward_server/example_server.py`; UniRL's
`unirl-reward-service/reward_service/schemas.py` and `unirl/reward/remote.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rewardzoo.clients import wire
from rewardzoo.clients.adapters.openrlhf import parse_label
from rewardzoo.clients.images import image_from_base64
from rewardzoo.errors import ItemError, NotServedError, RequestError
from rewardzoo.services.batcher import Item
from rewardzoo.services.exchange import Deadline, answer, read_body, unless_gone
from rewardzoo.services.form import make_item
from rewardzoo.services.limits import admit, check_json
from rewardzoo.services.tracing import span
from rewardzoo.services.workers import Encoded

if TYPE_CHECKING:
    from rewardzoo.rewards import Outcome
    from rewardzoo.services.host import Host, HostedReward

Body = Mapping[str, Any]
Items = list[Item | ItemError]
Handler = Callable[[Request, "Host"], Awaitable[Response]]


def routes() -> list[Route]:
    """Return the routes of all three; one that is off answers 404, and says how to turn it on."""
    found = []
    for protocol, path, handler, method in (
        ("openrlhf", "/get_reward", _get_reward, "POST"),
        ("flow_factory", "/compute", _compute, "POST"),
        ("flow_factory", "/health", _health, "GET"),
    ):
        endpoint = _route(protocol, handler)
        found += [
            Route(f"/{protocol}{middle}{path}", endpoint, methods=[method]) for middle in ("", "/{reward}")
        ]
    return [
        *found,
        Route("/unirl/score", _route("unirl", _score), methods=["POST"]),
        Route("/unirl/rewards", _route("unirl", _rewards)),
        Route("/unirl/health", _route("unirl", _health)),
    ]


def _route(protocol: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def work(request: Request) -> Response:
        host: Host = request.app.state.host
        if protocol not in host.config.compat:
            raise NotServedError(f"{request.url.path} is off: set REWARDZOO_COMPAT={protocol} on the server")
        return await handler(request, host)

    async def endpoint(request: Request) -> Response:
        return await answer(work(request))

    return endpoint


async def _get_reward(request: Request, host: Host) -> Response:
    """OpenRLHF: `{"query", "prompts", "labels"}`, lists; a label has the image, see `adapters.openrlhf`."""
    outcomes = await _ask(request, host, _labelled)
    # A null would end the trainer in torch.tensor; it goes on without the sample when the request fails.
    rewards = _values(outcomes)
    return JSONResponse({"rewards": rewards, "scores": rewards, "extra_logs": {}})


async def _compute(request: Request, host: Host) -> Response:
    """Flow-Factory: `{"prompt", "image"}`, lists; the images are base64."""
    try:
        return JSONResponse({"rewards": _values(await _ask(request, host, _illustrated))})
    except RequestError as error:
        # With a status its client would repeat the request, and not show the reason.
        return JSONResponse({"error": str(error)})


async def _health(_: Request, host: Host) -> Response:
    if not host.ready:
        return Response(status_code=503)
    return JSONResponse({"status": "ok", "rewards": {name: [True] for name in _names(host)}})


async def _rewards(_: Request, host: Host) -> Response:
    return JSONResponse({"rewards": _names(host)})


async def _score(request: Request, host: Host) -> Response:
    """UniRL: `{"requests": [{"history": [{"text", "image_b64"}], "required_rewards", "metadata"}]}`.

    The last turn is scored. The score of a reward is its sub-metric `score`.
    """
    deadline = Deadline.of(request, host.config.timeout)
    with host.admission.enter() as hold:
        body = await _read(request, host, deadline, hold)
        with span("decode"):
            asked = await asyncio.to_thread(_histories, body, host)
        rows: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for i, (names, _) in enumerate(asked):
            rows[names].append(i)
        chosen = {names: [host.find(name) for name in names] for names in rows}
        work = [host.score(chosen[names], [asked[i][1] for i in rows[names]], deadline) for names in rows]
        found = await unless_gone(request, _together(work))
    results: list[dict[str, Any]] = [{} for _ in asked]
    errors: list[dict[str, str]] = [{} for _ in asked]
    for (names, places), columns in zip(rows.items(), found, strict=True):
        for name, outcomes in zip(names, columns, strict=True):
            for i, outcome in zip(places, outcomes, strict=True):
                if isinstance(outcome, ItemError):
                    errors[i][name] = str(outcome)
                else:
                    results[i][name] = {"score": outcome.value}
    return JSONResponse({"results": results, "errors": errors})


async def _together(work: Sequence[Awaitable[list[list[Outcome]]]]) -> list[list[list[Outcome]]]:
    return await asyncio.gather(*work)


async def _ask(request: Request, host: Host, parse: Callable[[Body], Items]) -> list[Outcome]:
    """Score what `parse` makes of the body by the reward of the URL."""
    reward = _find(request, host)
    reward.check_room()  # before the body is read: an overloaded server has better things to do
    deadline = Deadline.of(request, host.config.timeout)
    with host.admission.enter() as hold:
        body = await _read(request, host, deadline, hold)
        with span("decode"):
            items = await asyncio.to_thread(lambda: admit(parse(body), host.config))
        (outcomes,) = await unless_gone(request, host.score([reward], items, deadline))
        return outcomes


def _find(request: Request, host: Host) -> HostedReward:
    name = request.path_params.get("reward")
    if name is not None:
        return host.find(name)
    if len(host.rewards) > 1:
        protocol, _, route = request.url.path.strip("/").partition("/")
        raise NotServedError(
            f"name the reward in the URL, as in /{protocol}/{next(iter(host.rewards))}/{route}; "
            f"there are: {', '.join(host.rewards)}"
        )
    return next(iter(host.rewards.values()))


def _names(host: Host) -> list[str]:
    """Return what a request may call the rewards: their full names, and families of one released variant."""
    families = dict.fromkeys(reward.spec.name for reward in host.rewards.values())
    released = [r.spec.name for r in host.rewards.values() if not r.variant.is_mini]
    return [*host.rewards, *(name for name in families if released.count(name) == 1)]


async def _read(request: Request, host: Host, deadline: Deadline, hold: Callable[[int], None]) -> Body:
    with span("receive"):
        body = await read_body(request, host.config.max_body, deadline, hold)
    host.observer.received(len(body))
    check_json(len(body), host.config)
    try:
        return await asyncio.to_thread(wire.decode_object, body.decode(), "body")
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: {error}") from error
    except ItemError as error:
        raise RequestError(str(error)) from error


def _labelled(body: Body) -> Items:
    prompts, labels = _lists(body, "prompts", "labels")
    try:
        samples = [parse_label(label, prompt) for label, prompt in zip(labels, prompts, strict=True)]
    except (ValueError, RecursionError) as error:
        raise RequestError(f"a label is malformed: {error}") from error
    return [_item(*sample) for sample in samples]


def _illustrated(body: Body) -> Items:
    if body.get("image") is None:
        raise RequestError("'image' is missing: only images are scored here")
    prompts, images = _lists(body, "prompt", "image")
    return [_item(image, prompt, {}) for image, prompt in zip(images, prompts, strict=True)]


def _histories(body: Body, host: Host) -> list[tuple[tuple[str, ...], Item | ItemError]]:
    found = []
    (requests,) = _lists(body, "requests")
    for i, each in enumerate(requests):
        if not isinstance(each, dict):
            raise RequestError(f"request {i} must be an object, got {type(each).__name__}")
        history, asked = each.get("history"), each.get("required_rewards")
        if not (isinstance(history, list) and history and isinstance(history[-1], dict)):
            raise RequestError(f"request {i} must have a 'history', a list of turns with a text and an image")
        if not (isinstance(asked, list) and asked and all(isinstance(name, str) for name in asked)):
            raise RequestError(f"request {i} must have 'required_rewards', a list of names")
        names = tuple(dict.fromkeys(asked))
        turn = history[-1]
        item = _item(turn.get("image_b64"), turn.get("text"), each.get("metadata") or {})
        if isinstance(item, Item) and len(names) > 1 and isinstance(item.image, bytes):
            item = Item(Encoded(item.image, len(names), host.shelf), item.prompt, item.metadata)
        found.append((names, item))
    items = admit([item for _, item in found], host.config)
    return [(names, item) for (names, _), item in zip(found, items, strict=True)]


def _lists(body: Body, *names: str) -> list[list[Any]]:
    """Return the lists of these names, which must be as long as each other."""
    lists = [body.get(name) for name in names]
    for name, value in zip(names, lists, strict=True):
        if not isinstance(value, list):
            raise RequestError(f"{name!r} must be a list, got {json.dumps(value)[:60]}")
    lengths = [len(value) for value in lists if value is not None]
    if len(set(lengths)) > 1:
        raise RequestError(f"{' and '.join(map(repr, names))} differ in length: {lengths}")
    return [value for value in lists if value is not None]


def _item(image: Any, prompt: Any, metadata: Any) -> Item | ItemError:
    try:
        if not isinstance(image, str):
            raise ItemError(f"the image must be base64 text, got {type(image).__name__}")
        if not isinstance(metadata, dict):
            raise ItemError(f"the metadata must be an object, got {type(metadata).__name__}")
        return make_item(image_from_base64(image), prompt, metadata)
    except ItemError as error:
        return error


def _values(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the scores.

    Raises:
        RequestError: some items have none, and the protocol no way to say so of an item.
    """
    failed = [f"item {i}: {o}" for i, o in enumerate(outcomes) if isinstance(o, ItemError)]
    if failed:
        raise RequestError(f"{len(failed)} of {len(outcomes)} items failed: {'; '.join(failed[:3])}")
    return [outcome.value for outcome in outcomes if not isinstance(outcome, ItemError)]
