from __future__ import annotations

from typing import Any

import pytest

from rewardzoo.services.gate import OPEN

CLOSED = [
    "/",
    "/v2",
    "/v2/models/fake:v1",
    "/docs.json",
    "/schema.json",
    "/score",
    "/v2/health/live/",
    "//livez",
]


@pytest.mark.parametrize("path", CLOSED)
def test_everything_but_probes_needs_the_token(serving: Any, path: str) -> None:
    with serving(token="secret") as client:
        for method in ("GET", "POST"):
            response = client.request(method, path)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"].split()[0] in ("Bearer", "Basic")
            assert "error" in response.json()


def test_probes_need_no_token(serving: Any) -> None:
    with serving(token="secret") as client:
        assert [client.get(path).status_code for path in sorted(OPEN)] == [200] * len(OPEN)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer secret", 200),
        ("bearer secret", 200),
        ("Bearer secre", 401),
        ("Bearer secret2", 401),
        ("Bearer", 401),
        ("Basic secret", 401),
        ("secret", 401),
        ("Bearer sécret", 401),
    ],
)
def test_only_the_exact_token_opens(serving: Any, header: str, status: int) -> None:
    with serving(token="secret") as client:
        response = client.get("/v2", headers={"Authorization": header.encode()})
    assert response.status_code == status


def test_without_a_token_configured_nothing_is_asked(serving: Any) -> None:
    with serving() as client:
        assert client.get("/v2").status_code == 200
