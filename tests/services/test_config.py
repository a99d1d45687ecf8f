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
        token=SecretStr("secret"),
        weights={"hpsv2:mini": Path("/some/file")},
        max_queue=7,
        timeout=1.5,
        ui="off",
    )
    for name, value in config.environment().items():
        monkeypatch.setenv(name, value)
    assert ServeConfig() == config


@pytest.mark.parametrize(
    ("name", "value"),
    [("TOKEN", ""), ("TIMEOUT", "0"), ("TIMEOUT", "4000"), ("MAX_QUEUE", "0"), ("UI", "yes")],
)
def test_senseless_values_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"REWARDZOO_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        ServeConfig()


def test_a_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "secret" not in repr(ServeConfig(token=SecretStr("secret")))
