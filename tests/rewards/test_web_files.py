"""Weights that lie on another server than the hub's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import constants

from rewardzoo.errors import WeightsError
from rewardzoo.rewards import Variant, WebFile, is_on_disk
from rewardzoo.rewards._weights import locate

CONTENT = b"weights"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file on a server that is reached, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = tmp_path / "server" / "model.pth"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def variant(path: Path, content: bytes = CONTENT) -> Variant:
    source = WebFile(path.as_uri(), hashlib.sha256(content).hexdigest())
    return Variant("v1", "recipe", {"checkpoint": source}, "MIT")


def test_a_file_is_downloaded_once_and_then_read_from_the_cache(published: Path) -> None:
    wanted = variant(published)
    assert not is_on_disk(wanted)
    found = locate(wanted)["checkpoint"]
    assert (found.name, found.read_bytes()) == ("model.pth", CONTENT)
    assert is_on_disk(wanted)
    published.unlink()
    assert locate(wanted)["checkpoint"] == found


def test_a_file_of_another_content_is_refused_and_not_kept(published: Path) -> None:
    wanted = variant(published, b"what the spec pins")
    with pytest.raises(WeightsError, match="hash"):
        locate(wanted)
    assert not is_on_disk(wanted)


def test_a_cached_file_that_was_changed_is_refused(published: Path) -> None:
    wanted = variant(published)
    locate(wanted)["checkpoint"].write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="damaged or was changed"):
        locate(wanted)


def test_offline_the_error_names_the_address_and_the_ways_out(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError) as caught:
        locate(variant(published))
    message = str(caught.value)
    assert published.as_uri() in message
    assert "HF_HUB_OFFLINE" in message
    assert "weights=PATH" in message


def test_weights_of_the_users_stand_in_for_it(published: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.pth"
    mine.write_bytes(b"mine")
    assert locate(variant(published), mine)["checkpoint"] == mine
