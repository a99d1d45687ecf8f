"""OpenTelemetry spans of what a request goes through, where that is configured."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from bentoml._internal.configuration.containers import BentoMLContainer
from opentelemetry import context, trace

from rewardzoo.services.access_log import current_request

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_tracer: trace.Tracer | None = None


def configure() -> bool:
    """Read the configuration, and say whether spans are recorded.

    They are where OpenTelemetry's own variables name an OTLP endpoint, and go there as its other `OTEL_*`
    say; or where BentoML's configuration has a `tracing.sample_rate`.
    """
    global _tracer
    _tracer = None
    if any(os.environ.get(name) for name in _ENDPOINTS):
        try:
            BentoMLContainer.tracer_provider.set(_otlp_provider())
        except ImportError as error:
            # Clusters set the endpoint for everybody, so this is no reason not to serve.
            logger.warning("no spans are recorded: pip install 'rewardzoo[tracing]' (%s)", error)
            return False
    elif not BentoMLContainer.tracing.sample_rate.get():
        return False
    _tracer = BentoMLContainer.tracer_provider.get().get_tracer("rewardzoo")
    return True


def span(name: str, **attributes: Any) -> AbstractContextManager[Any]:
    """Return a context manager that is a span of the current request, or does nothing."""
    if _tracer is None:
        return nullcontext()
    return _tracer.start_as_current_span(name, attributes=attributes)


@contextmanager
def scoring(reward: str, items: int) -> Iterator[Callable[[int], None]]:
    """Note what the current request has scored, in its record and as a span, its wait in the queue inside.

    What is yielded is to be told how many of the items have a score.
    """
    request = current_request()
    request.reward, request.items = reward, items
    began = time.time_ns()
    with span("score", reward=reward, items=items) as current:

        def done(ok: int) -> None:
            request.ok = ok
            if current is not None:
                current.set_attribute("ok", ok)

        try:
            yield done
        finally:
            if _tracer is not None and request.queue_seconds is not None:
                waited = _tracer.start_span("queue", start_time=began)
                waited.end(began + int(request.queue_seconds * 1e9))


def waited(seconds: float) -> None:
    """Note that an item of the current request waited for its batch."""
    request = current_request()
    request.queue_seconds = max(seconds, request.queue_seconds or 0.0)


def batch(reward: str, items: int, seconds: float) -> None:
    """Record a batch that was on the device for so long until now, as a trace of its own.

    It is a part of several requests, so it is nobody's child.
    """
    if _tracer is None:
        return
    end = time.time_ns()
    found = _tracer.start_span(
        "device",
        context.Context(),
        attributes={"reward": reward, "items": items},
        start_time=end - int(seconds * 1e9),
    )
    found.end(end)


def _otlp_provider() -> Any:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    name = os.environ.get("OTEL_SERVICE_NAME", "rewardzoo")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
