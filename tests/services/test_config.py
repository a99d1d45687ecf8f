from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from rewardzoo.services import ServeConfig


def test_the_environment_is_read_when_a_config_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDZOO_REWARDS", "hpsv2:mini, imagereward:mini,")
    monkeypatch.setenv("REWARDZOO_WEIGHTS", '{"hpsv2:mini": "/some/file"}')
    monkeypatch.setenv("REWARDZOO_MAX_BODY_MB", "2")
    config = ServeConfig()
    assert config.rewards == ["hpsv2:mini", "imagereward:mini"]
    assert config.weights == {"hpsv2:mini": Path("/some/file")}
    assert config.max_body == 2 * 2**20


def test_arguments_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDZOO_DEVICE", "cuda")
    assert ServeConfig(device="cpu").device == "cpu"


def test_another_process_reads_the_same_config_from_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ServeConfig(
        rewards=["hpsv2:mini", "imagereward:mini"],
        device="cpu",
        dtype="bfloat16",
        token=SecretStr("secret"),
        weights={"hpsv2:mini": Path("/some/file")},
        max_queue=7,
        timeout=1.5,
        ui="off",
    )
    for name, value in config.environment().items():
        monkeypatch.setenv(name, value)
    assert ServeConfig() == config


def test_a_token_file_stands_for_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("secret\n")
    monkeypatch.setenv("REWARDZOO_TOKEN_FILE", str(file))
    config = ServeConfig()
    assert config.token is not None
    assert config.token.get_secret_value() == "secret"
    environment = config.environment()
    assert environment["REWARDZOO_TOKEN_FILE"] == str(file)
    assert "secret" not in environment.values()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ServeConfig() == config


@pytest.mark.parametrize(("content", "says"), [(None, "cannot be read"), ("", "empty"), ("a b", "no spaces")])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValidationError, match=says):
        ServeConfig(token_file=file)


def test_a_token_and_a_token_file_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="both set"):
        ServeConfig(token=SecretStr("secret"), token_file=tmp_path)


@pytest.mark.parametrize("token", ["two words", "line\n", "schlüssel", "\x00"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValidationError, match="printable ASCII") as error:
        ServeConfig(token=SecretStr(token), timeout=-1)
    assert repr(token)[1:-1] not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKEN", ""),
        ("TIMEOUT", "0"),
        ("TIMEOUT", "4000"),
        ("MAX_QUEUE", "0"),
        ("MAX_PIXELS", "64000001"),
        ("LOG_FORMAT", "xml"),
        ("UI", "yes"),
    ],
)
def test_senseless_values_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"REWARDZOO_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        ServeConfig()


def test_a_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "secret" not in repr(ServeConfig(token=SecretStr("secret")))
