"""Reading checkpoints safely, and the copies in safetensors."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from rewardzoo.errors import WeightsError
from rewardzoo.rewards import _checkpoints
from rewardzoo.rewards._checkpoints import converted_sha256, read_checkpoint
from rewardzoo.rewards._hashes import sha256

State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def no_pickles(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, no file of PyTorch's can be read."""
    return lambda: monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))


def awkward() -> State:
    """Tensors of many kinds, some of which share or skip memory."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "base": base,
        "tied": base,
        "row": base[1],
        "transposed": base.t(),
        "strided": base[:, ::2],
        "half": torch.tensor([1.5, -0.0], dtype=torch.float16),
        "brain": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
        "ids": torch.arange(3),
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("ending", ["pt", "pth", "bin"])
def test_a_pickle_is_read_once_and_its_copy_in_safetensors_afterwards(
    tmp_path: Path, home: Path, no_pickles: Callable[[], None], ending: str
) -> None:
    path = tmp_path / f"model.{ending}"
    torch.save(awkward(), path)
    assert converted_sha256(path) is None
    assert_equal(read_checkpoint(path), awkward())
    (copy,) = (home / "rewardzoo" / "converted").iterdir()
    assert copy.name == f"{sha256(path)}.safetensors"
    assert converted_sha256(path) == sha256(copy) != sha256(path)
    assert copy.stat().st_mode == path.stat().st_mode
    no_pickles()
    assert_equal(read_checkpoint(path), awkward())


def test_a_copy_that_was_changed_is_not_believed(tmp_path: Path, home: Path, caplog: Any) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(2)}, path)
    read_checkpoint(path)
    (copy,) = (home / "rewardzoo" / "converted").iterdir()
    save_file({"a": torch.zeros(2)}, copy)
    assert read_checkpoint(path)["a"].tolist() == [1, 1]
    assert "making it anew" in caplog.text
    assert converted_sha256(path) == sha256(copy)
    copy.write_bytes(b"")
    assert read_checkpoint(path)["a"].tolist() == [1, 1]


def test_a_copy_without_a_record_is_not_believed(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(2)}, path)
    planted = home / "rewardzoo" / "converted" / f"{sha256(path)}.safetensors"
    planted.parent.mkdir(parents=True)
    save_file({"a": torch.zeros(2)}, planted)
    assert read_checkpoint(path)["a"].tolist() == [1, 1]


def test_another_file_under_the_same_name_has_a_copy_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for value in (1.0, 2.0):
        torch.save({"a": torch.tensor([value])}, path)
        assert read_checkpoint(path)["a"].tolist() == [value]


def test_a_home_that_cannot_be_written_to_is_done_without(tmp_path: Path, home: Path, caplog: Any) -> None:
    home.write_text("a file where the folder would be")
    path = tmp_path / "model.pt"
    torch.save(awkward(), path)
    with caplog.at_level(logging.INFO, logger=_checkpoints.logger.name):
        assert_equal(read_checkpoint(path), awkward())
    assert "is not converted to safetensors" in caplog.text
    assert converted_sha256(path) is None


def test_a_full_disk_is_done_without_and_nothing_is_left_behind(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fill(state: State, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fill)
    torch.save(awkward(), tmp_path / "model.pt")
    with caplog.at_level(logging.INFO, logger=_checkpoints.logger.name):
        assert_equal(read_checkpoint(tmp_path / "model.pt"), awkward())
    assert "No space left on device" in caplog.text
    assert list((home / "rewardzoo" / "converted").iterdir()) == []


def test_a_dtype_that_safetensors_lacks_is_read_from_the_pickle(tmp_path: Path) -> None:
    state = {"a": torch.zeros(2, dtype=torch.complex128)}
    torch.save(state, tmp_path / "model.pt")
    for _ in range(2):
        assert_equal(read_checkpoint(tmp_path / "model.pt"), state)


@pytest.mark.slow
def test_processes_that_convert_at_once_do_not_disturb_each_other(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "model.pt"
    state = {f"w{i}": torch.full((512, 512), float(i)) for i in range(40)}
    torch.save(state, path)
    script = (
        "import sys; from pathlib import Path\n"
        "from huggingface_hub import constants; constants.HF_HOME = sys.argv[2]\n"
        "from rewardzoo.rewards._checkpoints import read_checkpoint\n"
        "print(sum(t.double().sum().item() for t in read_checkpoint(Path(sys.argv[1])).values()))"
    )
    command = [sys.executable, "-c", script, str(path), str(home)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sums = [float(process.communicate()[0]) for process in running]
    assert sums == [512 * 512 * 780.0] * 3
    assert_equal(read_checkpoint(path), state)
    assert len(list((home / "rewardzoo" / "converted").iterdir())) == 1


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "name": "x"},
        lambda state: {"model": state, "optimizer": {"step": 1}},
        lambda state: state,
    ],
    ids=["open_clip", "blip", "bare"],
)
@pytest.mark.parametrize("as_archive", [True, False])
def test_the_weights_of_a_training_checkpoint_are_unwrapped(
    tmp_path: Path, wrap: Callable[[State], dict[str, Any]], as_archive: bool
) -> None:
    path = tmp_path / "model.pt"
    torch.save(wrap({"a": torch.ones(2)}), path, _use_new_zipfile_serialization=as_archive)
    assert_equal(read_checkpoint(path), {"a": torch.ones(2)})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": torch.ones(1), "epoch": 3}, "entry 'epoch' is a int, not a tensor"),
        ({"state_dict": {"a": torch.ones(1), "b": {"c": torch.ones(1)}}}, "entry 'b' is a dict"),
        ({7: torch.ones(1)}, "entry 7 is a Tensor"),
        ([torch.ones(1)], "holds a list, not a state dict"),
    ],
)
def test_what_is_no_state_dict_is_refused_by_its_entry(tmp_path: Path, content: Any, says: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=says):
        read_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_file_that_is_missing_or_damaged_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=name):
        read_checkpoint(tmp_path / name)
    (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(WeightsError, match=name):
        read_checkpoint(tmp_path / name)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "it-ran",)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"state_dict": Payload()}, tmp_path / "evil-zip.pt")
    for name in ("evil.pt", "evil-zip.pt"):
        with pytest.raises(WeightsError, match=name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "it-ran").exists()


def sharded(folder: Path, names: list[str], index: str, save: Callable[[State, Path], None]) -> Path:
    for i, name in enumerate(names):
        save({f"w{i}": torch.full((2,), float(i))}, folder / name)
    weight_map = {f"w{i}": name for i, name in enumerate(names)}
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_folder_of_shards_is_one_state_dict(tmp_path: Path, ending: str) -> None:
    stem = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    names = [f"{stem}-0000{i}.{ending}" for i in (1, 2)]
    save = save_file if ending == "safetensors" else torch.save
    sharded(tmp_path, names, f"{stem}.{ending}.index.json", save)
    assert_equal(read_checkpoint(tmp_path), {"w0": torch.zeros(2), "w1": torch.ones(2)})
    (tmp_path / names[1]).unlink()
    with pytest.raises(WeightsError, match=f"lacks {names[1]}"):
        read_checkpoint(tmp_path)


def test_a_folder_with_one_file_of_weights_is_read_and_one_without_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no weights"):
        read_checkpoint(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert_equal(read_checkpoint(tmp_path), {"a": torch.zeros(1)})
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert_equal(read_checkpoint(tmp_path), {"a": torch.ones(1)})


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"a": "../secret.safetensors"}}, "not in its own folder"),
        ({"weight_map": {"a": 3}}, "not an index of shards"),
        ({}, "not an index of shards"),
        ([], "not an index of shards"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(tmp_path: Path, index: Any, says: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=says):
        read_checkpoint(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path, ["1.safetensors", "2.safetensors"], "model.safetensors.index.json", save_file)
    save_file({"w0": torch.ones(2)}, tmp_path / "2.safetensors")
    with pytest.raises(WeightsError, match=r"'w0' is in 2\.safetensors and in another shard"):
        read_checkpoint(tmp_path)
