from __future__ import annotations

import socket
from contextlib import closing
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from rewardzoo.services import ServeConfig
from rewardzoo.services.gate import OPEN, check_address, is_loopback, listening_addresses

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


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    check_address(ServeConfig(), host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "fe80::1%eth0", "::ffff:10.0.0.1"])
def test_an_address_that_others_reach_needs_a_token(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ValueError, match=r"can be reached from other machines.*REWARDZOO_TOKEN"):
        check_address(ServeConfig(), host)
    check_address(ServeConfig(token=SecretStr("secret")), host)


def test_a_name_is_not_an_address() -> None:
    with pytest.raises(ValueError, match=r"example\.org"):
        is_loopback("example.org")


def test_the_sockets_of_this_process_are_found() -> None:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.9", 0))
        assert "127.0.0.9" not in listening_addresses()
        listening.listen()
        assert "127.0.0.9" in listening_addresses()
    assert "127.0.0.9" not in listening_addresses()


def test_a_service_does_not_start_on_an_open_socket_without_a_token(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewardzoo.services.service.listening_addresses", lambda: ["127.0.0.1", "0.0.0.0"])
    with pytest.raises(ValueError, match=r"0\.0\.0\.0 can be reached from other machines"), serving():
        pytest.fail("it started")
    with serving(token="secret") as client:
        assert client.get("/livez").status_code == 200


@pytest.mark.parametrize(("address", "status"), [("127.0.0.1", 200), ("192.0.2.7", 403)])
def test_without_a_token_a_request_from_outside_is_refused_even_where_startup_could_not_see_it(
    make_app: Any, address: str, status: int
) -> None:
    with TestClient(make_app(), base_url=f"http://{address}") as client:
        response = client.get("/v2")
        assert response.status_code == status
        if status == 403:
            assert "REWARDZOO_TOKEN" in response.json()["error"]
        assert client.get("/livez").status_code == 200
