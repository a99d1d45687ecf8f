"""`RewardClient` and `AsyncRewardClient`: scores from a server, or from replicas of it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, overload
from weakref import WeakKeyDictionary

import httpx
import numpy as np
from numpy.typing import NDArray

from rewardzoo.clients.cache import ScoreCache
from rewardzoo.clients.http_transport import HTTPTransport
from rewardzoo.clients.pool import PROBE_TIMEOUT, Pool
from rewardzoo.clients.result import ScoreResult
from rewardzoo.clients.retries import retrying
from rewardzoo.clients.scorer import Images, Metadata, OnError, Reward, Scorer
from rewardzoo.clients.server import ServedReward, ServerTransport
from rewardzoo.clients.sockets import Verify
from rewardzoo.errors import DeadlineError

_PROBE_PAUSE = 0.2
_T = TypeVar("_T")


class RewardClient(Scorer):
    """Scores images with the rewards of a server. Close it, or use it in a `with`.

        with RewardClient("http://127.0.0.1:3000") as client:
            scores = client.score(images, prompts, reward="hpsv2:v2.1")

    `url` is `http://` or `https://` of a rewardzoo service, Triton or another server of the Open Inference
    Protocol, or `grpc://` or `grpcs://` of one that speaks gRPC, as Triton does (extra `triton`).

    It may be a list of replicas: a part goes to the one with the fewest outstanding, a dead one is
    passed over until it is ready again, and with `hedge_after` a part that has had no answer for so many
    seconds is sent to a second one too.

    `timeout` is how many seconds one call may take in all, repeats included: keep it below a
    trainer's collective timeout. What fails for a while (an overloaded, restarting or unreachable
    server) is repeated within it. `max_in_flight` is how many requests are open at a time, of all calls
    together; calls of few items that wait for company share a request. `reward` is meant where a
    call names none. `cache` holds scores that are known already. `verify` is how the
    server's certificate is checked: True by the usual authorities, a file of one's own authorities, or, for
    https, False or an `ssl.SSLContext`, which can also hold a certificate of the client's, but cannot be
    pickled. `transport` is httpx's: a mock in tests,
    a Unix socket, a proxy. `downscale` resizes pixels here, as the reward itself does and where its server
    says that no score moves by it, so that fewer bytes travel; provenance tells of it.

    Thread-safe. May be made before a fork and pickled: each process opens its own connections.

    Raises:
        MissingExtraError: `grpc://` without the extra `triton`.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        reward: Reward | None = None,
        token: str | None = None,
        timeout: float = 120.0,
        max_in_flight: int = 4,
        hedge_after: float | None = None,
        cache: ScoreCache | None = None,
        verify: Verify = True,
        transport: httpx.BaseTransport | None = None,
        downscale: bool = False,
    ) -> None:
        self.urls = (url,) if isinstance(url, str) else tuple(url)
        servers = [_connect(each, token, verify, transport, downscale) for each in self.urls]
        self._pool = Pool(servers, hedge_after=hedge_after)
        super().__init__(self._pool, timeout=timeout, max_in_flight=max_in_flight, reward=reward, cache=cache)
        self._remake = partial(
            type(self),
            self.urls,
            reward=reward,
            token=token,
            timeout=timeout,
            max_in_flight=max_in_flight,
            hedge_after=hedge_after,
            cache=cache,
            verify=verify,
            transport=transport,
            downscale=downscale,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return self._remake, ()

    def rewards(self) -> list[ServedReward]:
        """List what the server hosts; of replicas, one that can be reached.

        Raises:
            RequestError, UnavailableError: no list could be had.
        """
        deadline = time.monotonic() + self._timeout
        return retrying(lambda: self._pool.any(lambda server: server.rewards(deadline=deadline)), deadline)

    def ready(self) -> bool:
        """Say whether the server, or any of its replicas, answers now and has its weights loaded."""
        return self._pool.ready(timeout=PROBE_TIMEOUT)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Return once the server, or any of its replicas, is ready.

        Raises:
            DeadlineError: it was not within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        # A server that is loading weights accepts connections and stays silent: probe, never wait.
        while (left := deadline - time.monotonic()) > 0:
            if self._pool.ready(timeout=min(left, PROBE_TIMEOUT)):
                return
            time.sleep(min(left, _PROBE_PAUSE))
        raise DeadlineError(f"{', '.join(self.urls)} was not ready within {timeout:g} s: is it running?")


class AsyncRewardClient:
    """`RewardClient` to be awaited; takes what that takes.

        async with AsyncRewardClient("http://127.0.0.1:3000") as client:
            scores = await client.score(images, prompts, reward="hpsv2:v2.1")

    It is that client, waited for otherwise: thousands of tasks may call it, and share its few threads
    and requests. A task that is cancelled sends nothing more. `client.sync` is the client itself.
    """

    def __init__(self, url: str | Sequence[str], **options: Any) -> None:
        self.sync = RewardClient(url, **options)
        self._bells: WeakKeyDictionary[asyncio.AbstractEventLoop, _Bell] = WeakKeyDictionary()

    @overload
    async def score(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: Reward | None = None,
        metadata: Metadata | None = None,
        on_error: Literal["raise", "nan"] = "raise",
    ) -> NDArray[np.float32]: ...
    @overload
    async def score(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: Reward | None = None,
        metadata: Metadata | None = None,
        on_error: Literal["none"],
    ) -> list[Any]: ...
    async def score(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: Reward | None = None,
        metadata: Metadata | None = None,
        on_error: OnError = "raise",
    ) -> NDArray[np.float32] | list[Any]:
        """Score as `RewardClient.score`."""
        submit = self.sync.submit
        return await self._wait(submit(images, prompts, reward=reward, metadata=metadata, on_error=on_error))

    async def score_result(
        self,
        images: Images,
        prompts: Sequence[str] | str,
        *,
        reward: Reward | None = None,
        metadata: Metadata | None = None,
    ) -> ScoreResult:
        """Score as `RewardClient.score_result`."""
        submit = self.sync.submit_result
        return await self._wait(submit(images, prompts, reward=reward, metadata=metadata))

    async def rewards(self) -> list[ServedReward]:
        """List as `RewardClient.rewards`."""
        return await asyncio.to_thread(self.sync.rewards)

    async def ready(self) -> bool:
        """Say as `RewardClient.ready`."""
        return await asyncio.to_thread(self.sync.ready)

    async def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait as `RewardClient.wait_ready`."""
        await asyncio.to_thread(self.sync.wait_ready, timeout)

    async def close(self) -> None:
        """Close as `RewardClient.close`."""
        await asyncio.to_thread(self.sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _wait(self, future: Future[_T]) -> _T:
        loop = asyncio.get_running_loop()
        if (bell := self._bells.get(loop)) is None:
            bell = self._bells[loop] = _Bell()
        waiter: asyncio.Future[None] = loop.create_future()
        future.add_done_callback(lambda _: bell.ring(waiter))
        patience = self.sync.patience
        timer = None if patience is None else loop.call_later(patience, _give_up, waiter, patience)
        try:
            await waiter
            return future.result()
        finally:
            future.cancel()  # without effect on one that is done
            if timer is not None:
                timer.cancel()


class _Bell:
    """Tells an event loop of futures that are done in other threads; it is woken once for many."""

    def __init__(self) -> None:
        self._done: deque[asyncio.Future[None]] = deque()
        self._rung = False

    def ring(self, waiter: asyncio.Future[None]) -> None:
        self._done.append(waiter)
        if not self._rung:
            self._rung = True
            with suppress(RuntimeError):  # a loop that is closed waits for nothing
                waiter.get_loop().call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._rung = False  # first, so that whoever comes now rings again
        while self._done:
            waiter = self._done.popleft()
            if not waiter.done():
                waiter.set_result(None)


def _give_up(waiter: asyncio.Future[None], patience: float) -> None:
    if not waiter.done():
        waiter.set_exception(DeadlineError(f"no answer within {patience:g} s"))


def _connect(
    url: str, token: str | None, verify: Verify, transport: httpx.BaseTransport | None, downscale: bool
) -> ServerTransport:
    parsed = httpx.URL(url)
    if parsed.host and parsed.scheme in ("http", "https"):
        return HTTPTransport(url, token=token, verify=verify, transport=transport, downscale=downscale)
    if not parsed.host or not parsed.port or parsed.scheme not in ("grpc", "grpcs"):
        raise ValueError(f"url must look like http://host:3000 or grpc://host:8001, got {url!r}")
    if transport is not None:
        raise ValueError(f"transport is httpx's and of no use to {url}: leave it out")
    if verify is not True and not (isinstance(verify, str | Path) and parsed.scheme == "grpcs"):
        raise ValueError(f"verify is True or, for grpcs, a file of authorities; with {url} it was {verify!r}")
    from rewardzoo.clients.grpc_transport import GRPCTransport

    authorities = None if verify is True else Path(str(verify)).read_bytes()
    secure = parsed.scheme == "grpcs"
    return GRPCTransport(parsed.netloc.decode(), secure=secure, authorities=authorities, token=token)
