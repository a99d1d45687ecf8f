"""A real server with everything that guards it turned on, and what it says while it is used and misused."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from rewardzoo.clients import RewardClient
from rewardzoo.errors import ItemsFailedError, UnauthorizedError, UnavailableError
from rewardzoo.services import ServeConfig
from rewardzoo.services.launch import TLS, running, serve

REWARD = "hpsv2:mini"
TOKEN, GUESS = "correct-horse-battery", "wrong-horse-staple"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
ALLOWED = {"Authorization": f"Bearer {TOKEN}"}

slow = pytest.mark.slow


@dataclass(frozen=True)
class Server:
    url: str
    authority: Path
    log: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[TLS, Path]:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    leaf.private_key_pem.write_to_path(str(folder / "key.pem"))
    for part in leaf.cert_chain_pems:
        part.write_to_path(str(folder / "chain.pem"), append=True)
    return TLS(folder / "chain.pem", folder / "key.pem"), folder / "authority.pem"


@pytest.fixture(scope="module")
def server(certificates: tuple[TLS, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "token").write_text(f"{TOKEN}\n")
    config = ServeConfig(rewards=[REWARD], device="cpu", token_file=folder / "token", max_items=100)
    with running(config, tls=certificates[0], log=folder / "log") as url:
        yield Server(url, certificates[1], folder / "log")


@slow
def test_the_client_scores_over_https_with_the_authority_it_was_given(server: Server) -> None:
    for verify in (
        server.authority,
        str(server.authority),
        ssl.create_default_context(cafile=server.authority),
    ):
        with RewardClient(server.url, token=TOKEN, verify=verify) as client:
            assert np.isfinite(client.score(PIXELS, ["a"] * 3, reward=REWARD)).all()


@slow
def test_the_client_does_not_talk_to_a_server_whose_certificate_it_cannot_check(server: Server) -> None:
    with RewardClient(server.url, token=TOKEN, timeout=3) as client:
        assert not client.ready()
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            client.score(PIXELS, ["a"] * 3, reward=REWARD)
    with RewardClient(server.url, token=TOKEN, verify=False) as client:
        assert client.ready()


@slow
def test_plain_http_and_old_tls_get_no_answer(server: Server) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url.replace("https", "http") + "/livez")
    old = ssl.create_default_context(cafile=server.authority)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with httpx.Client(verify=old) as client:
        assert client.get(f"{server.url}/livez").status_code == 200
    old.set_ciphers("ECDHE-ECDSA-AES128-SHA")
    with httpx.Client(verify=old) as client, pytest.raises(httpx.TransportError):
        client.get(f"{server.url}/livez")


@slow
def test_a_secured_servers_log_is_json_with_a_line_a_request_and_no_secret(server: Server) -> None:
    with httpx.Client(
        base_url=server.url, verify=ssl.create_default_context(cafile=server.authority)
    ) as http:
        named = http.get("/v2", headers={**ALLOWED, "X-Request-ID": "named-by-me"})
        http.get(f"/v2?token={TOKEN}&x={GUESS}", headers={"Authorization": f"Bearer {GUESS}"})
        http.get("/v2", headers={"Authorization": f"Basic {TOKEN}", "Cookie": f"t={TOKEN}"})
        http.post("/score", headers=ALLOWED, content=f"{TOKEN}", params={"token": TOKEN})
        http.post("/v2/models/x/infer", headers={**ALLOWED, "X-Request-ID": f"{TOKEN} {GUESS}"})
    guesser = RewardClient(server.url, token=GUESS, verify=server.authority)
    with guesser, pytest.raises(UnauthorizedError):
        guesser.score(PIXELS, ["a"] * 3, reward=REWARD)
    allowed = RewardClient(server.url, token=TOKEN, verify=server.authority)
    with allowed, pytest.raises(ItemsFailedError):
        allowed.score([*PIXELS, b"\x89PNG\r\n\x1a\n"], ["a"] * 4, reward=REWARD)
    assert named.headers["X-Request-ID"] == "named-by-me"
    text = server.log.read_text()
    assert TOKEN not in text
    assert GUESS not in text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    requests = [line for line in lines if line["logger"] == "rewardzoo.access"]
    assert [line["path"] for line in requests if line["id"] == "named-by-me"] == ["/v2"]
    assert {line["status"] for line in requests} >= {200, 400, 401, 404}
    scored = [line for line in requests if line["reward"] == REWARD]
    assert {(line["items"], line["ok"]) for line in scored} >= {(3, 3)}
    assert all(line["bytes_in"] > 0 and line["seconds"] > 0 and line["remote"] for line in scored)
    # BentoML's own access log would have said it again.
    assert sum("named-by-me" in line for line in text.splitlines()) == 1
    assert "bentoml.access" not in {line["logger"] for line in lines}


@slow
def test_metrics_of_the_server_are_at_bentomls_address(server: Server) -> None:
    with httpx.Client(
        base_url=server.url, verify=ssl.create_default_context(cafile=server.authority)
    ) as http:
        assert http.get("/metrics").status_code == 401
        answer = http.get("/metrics", headers=ALLOWED)
    names = {family.name for family in text_string_to_metric_families(answer.text)}
    assert names >= {"rewardzoo_requests", "rewardzoo_request_seconds", "process_resident_memory_bytes"}


@slow
def test_clients_need_a_certificate_where_authorities_are_named(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ours, theirs = authority.issue_cert("127.0.0.1"), authority.issue_cert("trainer.example")
    ours.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    tls = TLS(tmp_path / "server.pem", tmp_path / "server.pem", tmp_path / "ca.pem")
    options = tls.options()
    # The very options go to uvicorn, which BentoML starts: no model is needed to see what they do.
    pairs = dict(zip(options[::2], options[1::2], strict=True))
    port = free_port()
    app = "from starlette.responses import Response as R; import uvicorn; uvicorn.run(R('x'), port={}, **{})"
    keywords = {
        "ssl_certfile": pairs["--ssl-certfile"],
        "ssl_keyfile": pairs["--ssl-keyfile"],
        "ssl_ca_certs": pairs["--ssl-ca-certs"],
        "ssl_cert_reqs": int(pairs["--ssl-cert-reqs"]),
        "ssl_ciphers": pairs["--ssl-ciphers"],
    }
    process = subprocess.Popen([sys.executable, "-c", app.format(port, keywords)], stderr=subprocess.DEVNULL)
    try:
        context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        theirs.configure_cert(context)
        with RewardClient(f"https://127.0.0.1:{port}", verify=context) as client:
            client.wait_ready(30)
        with RewardClient(f"https://127.0.0.1:{port}", verify=tmp_path / "ca.pem") as client:
            assert not client.ready()
    finally:
        process.kill()
        process.wait()


@slow
def test_bentoml_serve_by_hand_does_not_open_a_server_without_a_token(
    free_port: Callable[[], int], tmp_path: Path
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REWARDZOO_")}
    environment |= {
        "REWARDZOO_REWARDS": REWARD,
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "bentoml", "serve", "rewardzoo.services:Zoo", "--host", "0.0.0.0"]
    done = subprocess.run(
        [*command, "--port", str(free_port())],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        start_new_session=True,
        check=False,
    )
    said = done.stdout.decode()
    assert "cannot serve: 0.0.0.0 can be reached from other machines and no token is set" in said
    assert "initialized" not in said


@pytest.mark.parametrize("missing", ["certfile", "keyfile", "ca-certs"])
def test_a_tls_file_that_is_not_there_is_named_before_anything_starts(tmp_path: Path, missing: str) -> None:
    files = {name: tmp_path / name for name in ("certfile", "keyfile", "ca-certs")}
    for name in files.keys() - {missing}:
        files[name].write_text("x")
    tls = TLS(files["certfile"], files["keyfile"], files["ca-certs"])
    with pytest.raises(ValueError, match=f"--ssl-{missing} .* is not a file"):
        serve(ServeConfig(rewards=[REWARD]), tls=tls)


def test_tls_files_become_bentomls_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cert", "key"):
        (tmp_path / name).write_text("x")
    started: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda _, command, __: started.append(command))
    serve(ServeConfig(rewards=[REWARD]), tls=TLS(tmp_path / "cert", tmp_path / "key"))
    (command,) = started
    assert command[command.index("--ssl-certfile") + 1] == str(tmp_path / "cert")
    assert command[command.index("--ssl-keyfile") + 1] == str(tmp_path / "key")
    assert "--ssl-ca-certs" not in command
