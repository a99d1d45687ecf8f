import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from rewardzoo.errors import WeightsError
from rewardzoo.rewards import HubFile, HubFolder, PackagedFile, Variant, WebFile, _weights

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


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = _weights.sha256(file)
    assert _weights.sha256(file) == first
    file.write_bytes(b"two!")
    assert _weights.sha256(file) != first


def test_a_folder_given_holds_the_checkpoint_and_may_leave_the_rest_to_the_hub(tmp_path: Path) -> None:
    vocabulary = HubFile("someone/model", "vocab.txt", REVISION)
    both = replace(VARIANT, files={**VARIANT.files, "vocabulary": vocabulary})
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"hf download someone/model vocab\.txt"):
        _weights.locate(both, tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"")
    assert _weights.locate(both, tmp_path)["vocabulary"] == tmp_path / "vocab.txt"


def test_the_hashes_of_files_are_by_key_and_a_converted_copys_is_beside(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.ones(2)}, tmp_path / "model.pt")
    files = _weights.locate(VARIANT, tmp_path)
    before = _weights.hashes(VARIANT, files)
    assert before == {"checkpoint": _weights.sha256(tmp_path / "model.pt")}
    _weights.read_checkpoint(files["checkpoint"])
    after = _weights.hashes(VARIANT, files)
    assert after["checkpoint"] == before["checkpoint"]
    (copy,) = Path(constants.HF_HOME, "rewardzoo", "converted").iterdir()
    assert after["converted"] == hashlib.sha256(copy.read_bytes()).hexdigest()


FOLDER = HubFolder("someone/vlm", REVISION, patterns=("*.safetensors", "*.json"))
OF_FOLDER = replace(VARIANT, files={"checkpoint": FOLDER})
INDEX = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
WHOLE = {
    "config.json": b"{}",
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "model-1.safetensors": b"one",
    "model-2.safetensors": b"two",
}


def snapshot(hub: Path, files: dict[str, bytes]) -> Path:
    """Put a folder into the hub cache as a download would: big files are links to blobs named by hash."""
    folder = hub / "models--someone--vlm" / "snapshots" / REVISION
    blobs = hub / "models--someone--vlm" / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    blobs.mkdir(exist_ok=True)
    for name, content in files.items():
        if name.endswith(".safetensors"):
            blob = blobs / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            (folder / name).symlink_to(blob)
        else:
            (folder / name).write_bytes(content)
    return folder


def test_a_folder_that_is_not_here_says_the_line_that_downloads_it(hub: Path) -> None:
    assert not _weights.is_on_disk(OF_FOLDER)
    with pytest.raises(WeightsError) as caught:
        _weights.locate(OF_FOLDER)
    line = f"hf download someone/vlm --include '*.safetensors' --include '*.json' --revision {REVISION}"
    assert line in str(caught.value)
    assert "HF_HUB_OFFLINE is set" in str(caught.value)


def test_a_folder_in_the_cache_is_found_and_held_to_its_first_hash(hub: Path) -> None:
    folder = snapshot(hub, WHOLE)
    assert _weights.is_on_disk(OF_FOLDER)
    assert _weights.locate(OF_FOLDER) == {"checkpoint": folder}
    (folder / "config.json").write_bytes(b'{"other": 1}')
    with pytest.raises(WeightsError, match="damaged or was changed"):
        _weights.locate(OF_FOLDER)


def test_files_that_the_spec_does_not_name_are_no_part_of_a_folders_hash(hub: Path) -> None:
    folder = snapshot(hub, WHOLE)
    before = _weights.hashes(OF_FOLDER, _weights.locate(OF_FOLDER))
    (folder / "README.md").write_text("fetched by another program")
    assert _weights.hashes(OF_FOLDER, _weights.locate(OF_FOLDER)) == before
    (folder / "config.json").write_bytes(b'{"other": 1}')
    assert _weights.hashes(OF_FOLDER, {"checkpoint": folder}) != before


@pytest.mark.parametrize(
    ("missing", "lacks"),
    [
        (["model-2.safetensors"], "without model-2.safetensors"),
        (["model-1.safetensors", "model-2.safetensors"], r"without a file like \*\.safetensors"),
    ],
)
def test_a_download_that_did_not_end_is_not_taken_for_a_folder(
    hub: Path, missing: list[str], lacks: str
) -> None:
    snapshot(hub, {name: content for name, content in WHOLE.items() if name not in missing})
    assert not _weights.is_on_disk(OF_FOLDER)
    with pytest.raises(WeightsError, match=f"{lacks}.*did not end.*hf download someone/vlm"):
        _weights.locate(OF_FOLDER)
    snapshot(hub, {name: WHOLE[name] for name in missing})
    _weights.locate(OF_FOLDER)


def test_an_index_of_weights_in_a_format_not_asked_for_does_not_count(hub: Path) -> None:
    index = {"weight_map": {"a": "pytorch_model-1.bin"}}
    snapshot(hub, {**WHOLE, "pytorch_model.bin.index.json": json.dumps(index).encode()})
    assert _weights.is_on_disk(OF_FOLDER)


def test_a_damaged_blob_of_a_folder_is_named(hub: Path) -> None:
    folder = snapshot(hub, WHOLE)
    (folder / "model-2.safetensors").resolve().write_bytes(b"tvo")
    with pytest.raises(WeightsError, match=r"model-2\.safetensors is damaged"):
        _weights.locate(OF_FOLDER)


def test_a_folder_given_is_the_checkpoint_or_holds_it_by_its_name(tmp_path: Path) -> None:
    for name, content in WHOLE.items():
        (tmp_path / name).write_bytes(content)
    assert _weights.locate(OF_FOLDER, tmp_path) == {"checkpoint": tmp_path}
    (tmp_path / "vlm").mkdir()
    assert _weights.locate(OF_FOLDER, tmp_path) == {"checkpoint": tmp_path / "vlm"}


def test_a_path_that_cannot_be_a_folder_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"that folder is without a file like \*\.safetensors"):
        _weights.locate(OF_FOLDER, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="is a file, but the checkpoint is a folder"):
        _weights.locate(OF_FOLDER, tmp_path / "model.safetensors")


def test_two_parts_of_one_repository_have_hashes_of_their_own(hub: Path) -> None:
    folder = snapshot(hub, WHOLE)
    (folder / "other").mkdir()
    (folder / "other" / "model.safetensors").write_bytes(b"three")
    other = replace(FOLDER, patterns=("other/*.safetensors",))
    for source in (FOLDER, other, FOLDER, other):
        assert _weights.locate(replace(VARIANT, files={"checkpoint": source})) == {"checkpoint": folder}


def test_a_web_file_that_is_not_here_names_its_url_and_the_place_for_it(tmp_path: Path) -> None:
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    web = replace(VARIANT, files={"checkpoint": WebFile("https://127.0.0.1:1/a/model.pth", digest)})
    assert not _weights.is_on_disk(web)
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1:1/a/model\.pth.*HF_HUB_OFFLINE is set"):
        _weights.locate(web)
    place = tmp_path / "home" / "rewardzoo" / "web" / digest / "model.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    assert _weights.is_on_disk(web)
    assert _weights.locate(web) == {"checkpoint": place}
    place.write_bytes(b"weightz")
    with pytest.raises(WeightsError, match="damaged or was changed"):
        _weights.locate(web)


def test_a_web_file_is_downloaded_once_and_refused_with_another_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    origin = tmp_path / "model.pth"
    origin.write_bytes(b"weights")
    wrong = replace(VARIANT, files={"checkpoint": WebFile(origin.as_uri(), "0" * 64)})
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        _weights.locate(wrong)
    assert not _weights.is_on_disk(wrong)
    right = WebFile(origin.as_uri(), hashlib.sha256(b"weights").hexdigest())
    found = _weights.locate(replace(VARIANT, files={"checkpoint": right}))["checkpoint"]
    assert found.read_bytes() == b"weights"
    origin.unlink()
    assert _weights.locate(replace(VARIANT, files={"checkpoint": right})) == {"checkpoint": found}
