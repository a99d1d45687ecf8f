import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from rewardzoo.errors import WeightsError
from rewardzoo.rewards import HubFile, PackagedFile, Variant, _weights

REVISION = "0" * 40
VARIANT = Variant("v1", "recipe", {"checkpoint": HubFile("someone/model", "model.pt", REVISION)}, "MIT")


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache on a machine that is offline."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def cached(hub: Path, content: bytes) -> Path:
    """Put a file into the hub cache as a download would."""
    snapshot = hub / "models--someone--model" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "model.pt").write_bytes(content)
    return snapshot / "model.pt"


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch, hub: Path):
    def fake(content: bytes) -> Path:
        path = cached(hub, content)
        monkeypatch.setattr(_weights, "hf_hub_download", lambda *_, **__: str(path))
        return path

    return fake


def test_missing_weights_offline_say_where_they_were_sought_and_how_to_get_them(hub: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        _weights.locate(VARIANT)
    message = str(caught.value)
    assert "someone/model/model.pt" in message
    assert "HF_HUB_OFFLINE is set" in message
    assert f"hf download someone/model model.pt --revision {REVISION}" in message


def test_a_download_with_another_hash_than_the_pinned_one_is_refused(download) -> None:
    download(b"weights")
    pinned = replace(
        VARIANT,
        files={"checkpoint": HubFile("someone/model", "model.pt", REVISION, sha256="ab" * 32)},
    )
    with pytest.raises(WeightsError, match="expected abab"):
        _weights.locate(pinned)


def test_without_a_pinned_hash_the_first_one_seen_is_held_to(download) -> None:
    path = download(b"weights")
    assert _weights.locate(VARIANT) == {"checkpoint": path}
    path.write_bytes(b"other weights")
    with pytest.raises(WeightsError, match="damaged or was replaced"):
        _weights.locate(VARIANT)


def test_what_is_on_disk_is_known_without_loading_it(hub: Path) -> None:
    assert not _weights.is_on_disk(VARIANT)
    cached(hub, b"weights")
    assert _weights.is_on_disk(VARIANT)


def test_a_file_given_stands_in_for_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(b"")
    assert _weights.locate(VARIANT, tmp_path / "mine.pt") == {"checkpoint": tmp_path / "mine.pt"}


def test_a_folder_given_stands_in_for_the_hub(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no model\.pt"):
        _weights.locate(VARIANT, tmp_path)
    (tmp_path / "model.pt").write_bytes(b"")
    assert _weights.locate(VARIANT, tmp_path) == {"checkpoint": tmp_path / "model.pt"}


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere"):
        _weights.locate(VARIANT, tmp_path / "nowhere.pt")


def test_a_mini_missing_from_the_package_says_how_to_make_it() -> None:
    with pytest.raises(WeightsError, match="train_minis"):
        _weights.locate(replace(VARIANT, files={"checkpoint": PackagedFile("minis/none.safetensors")}))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "it-ran",)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"state_dict": Payload()}, tmp_path / "evil-zip.pt")
    for name in ("evil.pt", "evil-zip.pt"):
        with pytest.raises(WeightsError, match=name):
            _weights.read_checkpoint(tmp_path / name)
    assert not (tmp_path / "it-ran").exists()


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = _weights.sha256(file)
    assert _weights.sha256(file) == first
    file.write_bytes(b"two!")
    assert _weights.sha256(file) != first
