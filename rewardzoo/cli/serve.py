"""`rewardzoo serve`: a BentoML server with the rewards named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rewardzoo.errors import require


def serve(
    rewards: Annotated[list[str], typer.Argument(help="Rewards to host, e.g. hpsv2:v2.1 imagereward.")],
    host: Annotated[
        str, typer.Option(help="Address to bind; other than loopback needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind.")] = 3000,
    device: Annotated[
        str | None,
        typer.Option(help="A torch device; by default REWARDZOO_DEVICE, or the GPU where there is one."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="REWARDZOO_TOKEN", help="Bearer token that callers must send."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(envvar="REWARDZOO_TOKEN_FILE", help="A file that holds the token instead."),
    ] = None,
    ssl_certfile: Annotated[
        Path | None, typer.Option(help="Certificate, and any chain behind it, in PEM: serve HTTPS.")
    ] = None,
    ssl_keyfile: Annotated[
        Path | None, typer.Option(help="Its private key in PEM, without a password.")
    ] = None,
    ssl_ca_certs: Annotated[
        Path | None, typer.Option(help="Ask clients for a certificate of one of these authorities.")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH: weights on disk instead of the hub's, and of REWARDZOO_WEIGHTS."),
    ] = None,
    ui: Annotated[
        bool | None,
        typer.Option(help="A page at /; by default where the extra ui is installed, or REWARDZOO_UI says."),
    ] = None,
) -> None:
    """Start a real BentoML server; it is ready once every reward's weights are loaded."""
    require("pydantic_settings", extra="serve")
    from pydantic import SecretStr

    from rewardzoo.services.config import ServeConfig
    from rewardzoo.services.launch import TLS
    from rewardzoo.services.launch import serve as run

    if (ssl_certfile is None) != (ssl_keyfile is None) or (ssl_ca_certs and not ssl_certfile):
        raise typer.BadParameter("HTTPS needs both --ssl-certfile and --ssl-keyfile")
    # What is not given is left to the environment.
    given: dict[str, Any] = {} if device is None else {"device": device}
    if weights:
        given["weights"] = parse_weights(weights)
    if ui is not None:
        given["ui"] = "on" if ui else "off"
    config = ServeConfig(
        rewards=rewards,
        token=SecretStr(token) if token else None,
        token_file=token_file,
        **given,
    )
    tls = TLS(ssl_certfile, ssl_keyfile, ssl_ca_certs) if ssl_certfile and ssl_keyfile else None
    run(config, host=host, port=port, tls=tls)


def parse_weights(options: list[str] | None) -> dict[str, Path]:
    """Read `NAME=PATH` options.

    Raises:
        typer.BadParameter: one has no `=`.
    """
    pairs = [option.partition("=") for option in options or []]
    for name, sign, path in pairs:
        if not (name and sign and path):
            raise typer.BadParameter(f"--weights takes NAME=PATH, got {name + sign + path!r}")
    return {name: Path(path) for name, _, path in pairs}
