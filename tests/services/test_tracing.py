from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rewardzoo.clients import wire
from rewardzoo.services import access_log, tracing
from rewardzoo.services.access_log import RequestRecord
from rewardzoo.services.metrics import Metrics

TRACE = "0af7651916cd43dd8448eb211c80319c"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(ENDPOINT, raising=False)
    yield
    monkeypatch.undo()
    BentoMLContainer.tracer_provider.reset()
    tracing.configure()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setattr(tracing, "_otlp_provider", lambda: provider)
    return exporter


def infer(client: Any, **headers: str) -> Any:
    tensors = {
        wire.IMAGES: np.zeros((2, 8, 8, 3), np.uint8),
        wire.PROMPTS: wire.bytes_tensor(["a", ""]),
    }
    chunks, length = wire.encode({}, tensors, key="inputs")
    headers = {wire.HEADER: str(length), **headers}
    return client.post("/v2/models/fake:v1/infer", content=b"".join(chunks), headers=headers)


def test_a_request_is_a_span_with_its_stages_inside(serving: Any, spans: InMemorySpanExporter) -> None:
    with serving() as client:
        assert infer(client, traceparent=f"00-{TRACE}-b7ad6b7169203331-01").status_code == 200
    found = {span.name: span for span in spans.get_finished_spans()}
    (server,) = (span for span in found.values() if span.kind.name == "SERVER")
    assert f"{server.context.trace_id:032x}" == TRACE, "it continues the caller's trace"
    for name in ("receive", "decode", "score"):
        assert found[name].parent.span_id == server.context.span_id
    assert dict(found["score"].attributes) == {"reward": "fake:v1", "items": 2, "ok": 1}
    assert found["decode"].end_time <= found["score"].start_time


def test_a_large_body_is_not_a_span_for_each_piece(serving: Any, spans: InMemorySpanExporter) -> None:
    with serving() as client:
        client.post("/v2/models/nope/infer", content=iter([bytes(1000)] * 50))
        infer(client)
    assert len(spans.get_finished_spans()) < 8


def test_a_batch_is_a_trace_of_its_own(spans: InMemorySpanExporter) -> None:
    assert tracing.configure()
    Metrics().ran("fake:v1", 8, 0.25)
    (span,) = spans.get_finished_spans()
    assert span.parent is None
    assert (span.name, dict(span.attributes)) == ("device", {"reward": "fake:v1", "items": 8})
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(0.25, abs=1e-6)


def test_the_longest_wait_of_a_requests_items_is_a_span_inside_its_score(spans: InMemorySpanExporter) -> None:
    assert tracing.configure()
    record = RequestRecord("seven")
    token = access_log._current.set(record)
    try:
        with tracing.scoring("fake:v1", 3) as done:
            for seconds in (0.01, 0.03, 0.02):
                Metrics().waited("fake:v1", seconds)
            done(3)
    finally:
        access_log._current.reset(token)
    queue, score = spans.get_finished_spans()
    assert (queue.name, score.name) == ("queue", "score")
    assert queue.parent.span_id == score.context.span_id
    assert (queue.end_time - queue.start_time) / 1e9 == pytest.approx(0.03, abs=1e-6)
    assert record.queue_seconds == 0.03


def test_what_fails_is_marked(serving: Any, spans: InMemorySpanExporter, model: Any) -> None:
    model.go.clear()
    with serving(model, timeout=0.1) as client:
        assert infer(client).status_code == 504
        model.go.set()
    (score,) = (span for span in spans.get_finished_spans() if span.name == "score")
    assert score.status.status_code.name == "ERROR"


def test_without_configuration_nothing_is_done(serving: Any, make_app: Any) -> None:
    names = {middleware.cls.__name__ for middleware in make_app().user_middleware}
    assert "OpenTelemetryMiddleware" not in names
    assert names >= {"AccessLog", "Gate"}
    with serving() as client:
        assert infer(client).status_code == 200
    Metrics().ran("fake:v1", 8, 0.25)


def test_an_otlp_endpoint_is_sent_the_spans(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "my-zoo")
        with serving() as client:
            assert infer(client).status_code == 200
        BentoMLContainer.tracer_provider.get().force_flush()
        collector.shutdown()
        thread.join()
    sent = b"".join(bodies)
    for part in (b"my-zoo", b"decode", b"score", b"fake:v1"):
        assert part in sent


def test_a_server_without_the_exporter_serves_and_says_what_to_install(
    serving: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
    with serving() as client:
        assert infer(client).status_code == 200
    assert "pip install 'rewardzoo[tracing]'" in caplog.text
