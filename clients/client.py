"""`RewardClient`: scores from a server."""

from __future__ import annotations

import time

import httpx

from rewardzoo.clients.http_transport import HTTPTransport
from rewardzoo.clients.scorer import Scorer
from rewardzoo.clients.server import ServedReward, ServerTransport
from rewardzoo.errors import DeadlineError

_PROBE_TIMEOUT = 2.0
_PROBE_PAUSE = 0.2


class RewardClient(Scorer):
    """Scores images with the rewards of a server. Thread-safe; close it, or use it in a `with`.

        with RewardClient("http://127.0.0.1:3000") as client:
            scores = client.score(images, prompts, reward="hpsv2:v2.1")

    `url` is `http://` or `https://` of a rewardzoo service, Triton or another server of the Open Inference
    Protocol, or `grpc://` or `grpcs://` of one that speaks gRPC, as Triton does (extra `triton`).

    `timeout` is how many seconds one call may take in all, repeats included: keep it below a
    trainer's collective timeout. What fails for a while (an overloaded, restarting or unreachable
    server) is repeated within it. `transport` is httpx's: a mock in tests, a Unix socket, a proxy.

    Raises:
        MissingExtraError: `grpc://` without the extra `triton`.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 120.0,
        max_in_flight: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url
        self._server = _connect(url, token, transport)
        super().__init__(self._server, timeout=timeout, max_in_flight=max_in_flight)

    def rewards(self) -> list[ServedReward]:
        """List what the server hosts.

        Raises:
            RequestError, UnavailableError: no list could be had.
        """
        return self._server.rewards(deadline=time.monotonic() + self._timeout)

    def ready(self) -> bool:
        """Say whether the server answers now and has its weights loaded."""
        return self._server.ready(timeout=_PROBE_TIMEOUT)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Return once the server is ready.

        Raises:
            DeadlineError: it was not within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        # A server that is loading weights accepts connections and stays silent: probe, never wait.
        while (left := deadline - time.monotonic()) > 0:
            if self._server.ready(timeout=min(left, _PROBE_TIMEOUT)):
                return
            time.sleep(min(left, _PROBE_PAUSE))
        raise DeadlineError(f"{self.url} was not ready within {timeout:g} s: is it running?")


def _connect(url: str, token: str | None, transport: httpx.BaseTransport | None) -> ServerTransport:
    parsed = httpx.URL(url)
    if parsed.host and parsed.scheme in ("http", "https"):
        return HTTPTransport(url, token=token, transport=transport)
    if not parsed.host or not parsed.port or parsed.scheme not in ("grpc", "grpcs"):
        raise ValueError(f"url must look like http://host:3000 or grpc://host:8001, got {url!r}")
    if transport is not None:
        raise ValueError(f"transport is httpx's and of no use to {url}: leave it out")
    from rewardzoo.clients.grpc_transport import GRPCTransport

    return GRPCTransport(parsed.netloc.decode(), secure=parsed.scheme == "grpcs", token=token)
