"""BentoML's service, less what harms a server that runs for weeks."""

from __future__ import annotations

from typing import Any

import bentoml
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.applications import Starlette

from rewardzoo.services import tracing


class RewardService(bentoml.Service[Any]):  # type: ignore[misc]  # BentoML exports it untyped
    """A BentoML service without its timeout, and with its tracing only where that is configured.

    The timeout keeps a timer for each request until its time is up, which is a leak where that is long,
    and leaves a request that ends without an answer waiting for it. Each request has a deadline of its own.
    """

    def to_asgi(self, is_main: bool = True) -> Starlette:
        """Return the ASGI app."""
        traced = tracing.configure()
        app: Starlette = super().to_asgi(is_main=is_main)
        unwanted: set[Any] = {TimeoutMiddleware} | (set() if traced else {OpenTelemetryMiddleware})
        app.user_middleware = [m for m in app.user_middleware if m.cls not in unwanted]
        for middleware in app.user_middleware:
            kind: Any = middleware.cls
            if kind is OpenTelemetryMiddleware:
                # Else there is a span for each piece of a body.
                middleware.kwargs["exclude_spans"] = ["receive", "send"]
        return app
