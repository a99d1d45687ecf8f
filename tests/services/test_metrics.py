from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rewardzoo.services.metrics import Metrics

DASHBOARD = Path(__file__).parents[2] / "deploy/grafana-dashboard.json"


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: Metrics | str, name: str, **labels: str) -> float | None:
    text = metrics if isinstance(metrics, str) else metrics.exposition().decode()
    return samples(text).get((name, tuple(sorted(labels.items()))))


def test_what_a_batcher_tells_is_counted_by_reward() -> None:
    metrics = Metrics()
    metrics.waited("a", 0.02)
    metrics.waited("a", 0.04)
    metrics.ran("a", 2, 0.2)
    metrics.scored("a", "ok", 1)
    metrics.scored("a", "item_error", 1)
    metrics.scored("b", "refused", 64)
    metrics.queued("a", 7)
    metrics.queued("a", 3)
    metrics.received(3_000)
    metrics.loaded("a", 12.0)
    metrics.evicted("b")
    assert value(metrics, "rewardzoo_queue_wait_seconds_sum", reward="a") == pytest.approx(0.06)
    assert value(metrics, "rewardzoo_queue_wait_seconds_bucket", reward="a", le="0.025") == 1
    assert value(metrics, "rewardzoo_device_seconds_sum", reward="a") == 0.2
    assert value(metrics, "rewardzoo_batch_items_sum", reward="a") == 2
    assert value(metrics, "rewardzoo_items_total", reward="a", outcome="ok") == 1
    assert value(metrics, "rewardzoo_items_total", reward="a", outcome="item_error") == 1
    assert value(metrics, "rewardzoo_items_total", reward="b", outcome="refused") == 64
    assert value(metrics, "rewardzoo_queued_items", reward="a") == 3
    assert value(metrics, "rewardzoo_request_size_bytes_sum") == 3_000
    assert value(metrics, "rewardzoo_load_seconds_sum", reward="a") == 12
    assert value(metrics, "rewardzoo_evictions_total", reward="b") == 1
    assert value(metrics, "process_resident_memory_bytes") > 0


def test_apps_in_one_process_count_apart(serving: Any) -> None:
    with serving() as one, serving() as other:
        for _ in range(3):
            one.get("/v2")
        other.get("/v2")
        counts = [
            value(client.get("/metrics").text, "rewardzoo_requests_total", route="/v2", status="200")
            for client in (one, other)
        ]
    assert counts == [3, 1]


def test_paths_that_do_not_exist_and_names_of_models_make_no_series_of_their_own(serving: Any) -> None:
    with serving() as client:
        before = len(client.get("/metrics").text.splitlines())
        client.get("/nope"), client.get("/v2/models/nope")
        some = len(client.get("/metrics").text.splitlines())
        for i in range(100):
            client.get(f"/nope/{i}")
            client.get(f"/v2/models/{i}")
        text = client.get("/metrics").text
    assert before < some == len(text.splitlines())
    assert value(text, "rewardzoo_requests_total", route="other", status="404") == 101
    assert value(text, "rewardzoo_requests_total", route="/v2/models/{model}", status="404") == 101


def test_who_has_no_token_is_counted_as_such_whatever_they_ask_for(serving: Any) -> None:
    with serving(token="secret") as client:
        for i in range(20):
            client.get(f"/{i}")
        text = client.get("/metrics", headers={"Authorization": "Bearer secret"}).text
    assert value(text, "rewardzoo_requests_total", route="other", status="401") == 20


def test_requests_in_progress_are_those_not_answered_yet(serving: Any) -> None:
    with serving() as client:
        client.get("/v2")
        # The one that asks is being served itself.
        assert value(client.get("/metrics").text, "rewardzoo_requests_in_progress") == 1


def test_metrics_need_the_token_unless_they_are_opened(serving: Any) -> None:
    with serving(token="secret") as client:
        assert client.get("/metrics").status_code == 401
    with serving(token="secret", open_metrics="true") as client:
        response = client.get("/metrics")
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        assert client.get("/v2").status_code == 401


def test_names_have_the_prefix_and_prometheus_units() -> None:
    metrics = Metrics()
    names = {family.name for family in metrics.registry.collect() if not family.name.startswith("process_")}
    assert names
    for family in metrics.registry.collect():
        if family.name in names:
            assert family.name.startswith("rewardzoo_")
            assert not re.search(r"_(ms|millis|mb|kb)(_|$)", family.name)
            assert family.documentation


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\b(?:rewardzoo|process)_\w+", query)}
    known = set()
    for family in Metrics().registry.collect():
        endings = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_count", "_sum"),
        }.get(family.type, ("",))
        known |= {family.name + ending for ending in endings}
    assert len(panels) >= 10
    assert asked
    assert asked <= known
    ours = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in asked}
    families = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in Metrics().registry.collect()
        if family.name.startswith("rewardzoo_")
    }
    assert families <= ours, "a metric that no panel shows"


def test_the_autoscaler_asks_for_the_metric_of_the_queue() -> None:
    metrics = Metrics()
    metrics.queued("a", 3)
    adapter = (DASHBOARD.parent / "kubernetes/prometheus-adapter.yaml").read_text()
    (series,) = re.findall(r"seriesQuery: '(\w+)", adapter)
    assert value(metrics, series, reward="a") == 3


def test_what_a_service_scores_is_counted(serving: Any, png: Any) -> None:
    with serving() as client:
        files = [("images", ("a.png", png(), "image/png"))] * 3
        form = {"prompts": '["a", "raise", "c"]', "reward": "fake:v1"}
        response = client.post("/score", files=files, data=form)
        assert response.status_code == 200
        text = client.get("/metrics").text
    assert value(text, "rewardzoo_items_total", reward="fake:v1", outcome="ok") == 2
    assert value(text, "rewardzoo_items_total", reward="fake:v1", outcome="item_error") == 1
    assert value(text, "rewardzoo_queue_wait_seconds_count", reward="fake:v1") == 3
    assert value(text, "rewardzoo_batch_items_sum", reward="fake:v1") == 2
    assert value(text, "rewardzoo_queued_items", reward="fake:v1") == 0
    assert value(text, "rewardzoo_load_seconds_count", reward="fake:v1") == 1
    size = float(response.request.headers["content-length"])
    assert value(text, "rewardzoo_request_size_bytes_sum") == size
