"""Nobody gets past without the token, and without a token nobody from another machine."""

from __future__ import annotations

import hmac
import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING

import psutil
from starlette.datastructures import Headers, State
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from rewardzoo.services.config import ServeConfig
    from rewardzoo.services.host import Host

# A load balancer's probe has no token, and these tell nothing but yes or no.
OPEN = frozenset({"/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"})
METRICS = "/metrics"


class Gate:
    """ASGI middleware: answers 401 to a request without `Authorization: Bearer <token>`.

    The token is that of `state.host`, which is there before the first request is. Without a token, what
    came in at an address that other machines reach is answered with 403: `check_address` refuses to
    start there, but sees only sockets that are open when the service is made.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        refusal = None if scope["type"] == "lifespan" else self._refusal(scope)
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        host: Host = self.state.host
        config, path = host.config, scope["path"]
        if path in OPEN or (path == METRICS and config.open_metrics):
            return None
        if config.token is None:
            address = (scope.get("server") or ("", None))[0]
            if not _reached_from_outside(address):
                return None
            return JSONResponse({"error": _needs_token(address)}, 403)
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # Compared in constant time, so that the time taken tells nothing of how much was right.
        right = hmac.compare_digest(given.strip().encode(), config.token.get_secret_value().encode())
        if right and scheme.lower() == "bearer":
            return None
        return JSONResponse(
            {"error": "no valid token: send 'Authorization: Bearer <token>'"},
            401,
            {"WWW-Authenticate": "Bearer"},
        )


def is_loopback(host: str) -> bool:
    """Say whether an address, or "localhost", is reached from this machine alone.

    Raises:
        ValueError: `host` is neither.
    """
    if host == "localhost":
        return True
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def check_address(config: ServeConfig, host: str) -> None:
    """Refuse to listen at `host` without a token, where other machines can reach it.

    Raises:
        ValueError: it is refused, or `host` is not an address.
    """
    if config.token is None and not is_loopback(host):
        raise ValueError(_needs_token(host))


def listening_addresses() -> list[str]:
    """Return the addresses at which this process has sockets that listen."""
    return sorted(
        {
            connection.laddr.ip
            for connection in psutil.Process().net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    )


def _needs_token(address: str) -> str:
    return (
        f"{address} can be reached from other machines and no token is set: "
        "set REWARDZOO_TOKEN or REWARDZOO_TOKEN_FILE, or bind 127.0.0.1"
    )


@lru_cache(maxsize=64)
def _reached_from_outside(address: str) -> bool:
    try:
        return not is_loopback(address)
    except ValueError:
        return False  # a Unix socket, or a test that has no network
