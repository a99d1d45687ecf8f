"""Nobody gets past without the token, whichever route answers."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, State
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from rewardzoo.services.host import Host

# A load balancer's probe has no token, and these tell nothing but yes or no.
OPEN = frozenset({"/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"})


class Gate:
    """ASGI middleware: answers 401 to a request without `Authorization: Bearer <token>`.

    The token is that of `state.host`, which is there before the first request is.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN or self._knows(Headers(scope=scope)):
            return await self.app(scope, receive, send)
        refusal = JSONResponse(
            {"error": "no valid token: send 'Authorization: Bearer <token>'"},
            401,
            {"WWW-Authenticate": "Bearer"},
        )
        return await refusal(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        host: Host = self.state.host
        token = host.config.token
        if token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Compared in constant time, so that the time taken tells nothing of how much was right.
        right = hmac.compare_digest(given.strip().encode(), token.get_secret_value().encode())
        return right and scheme.lower() == "bearer"
