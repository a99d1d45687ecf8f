"""Modules that were pickled whole are read without their classes."""

from __future__ import annotations

import builtins
import collections
import functools
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import nn

from rewardzoo.errors import WeightsError
from rewardzoo.rewards._checkpoints import converted_sha256, read_checkpoint, read_module_checkpoint

events: list[str] = []


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    events.clear()


class Telling(nn.Module):
    """Says whenever any of its code runs."""

    def __new__(cls, *args: Any) -> Telling:
        events.append("new")
        return super().__new__(cls)

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Identity())
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.inner.extra = self.inner[0]  # the same layer under two names
        self.register_buffer("kept", torch.arange(2))
        self.register_buffer("lost", torch.arange(2), persistent=False)
        self.register_parameter("none", None)
        self.activation = torch.nn.functional.relu
        self.config = {"hidden": 4, "names": ("a", "b"), "dtype": torch.float16, "nested": Plain()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        events.append("setstate")
        super().__setstate__(state)


class Plain:
    def __setstate__(self, state: object) -> None:
        events.append("plain setstate")

    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}


def test_the_state_dict_comes_out_and_no_code_of_its_classes_runs(tmp_path: Path) -> None:
    module = Telling()
    torch.save(module, tmp_path / "model.pt")
    events.clear()
    state = read_module_checkpoint(tmp_path / "model.pt")
    assert events == []
    assert state.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)
    assert converted_sha256(tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert set(events) == {"new", "setstate", "plain setstate"}, "the test would notice"


def test_a_class_that_cannot_be_imported_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gone_net", types.ModuleType("gone_net"))
        sys.modules["gone_net"].Net = type("Net", (nn.Linear,), {"__module__": "gone_net"})
        torch.save(sys.modules["gone_net"].Net(2, 2), tmp_path / "model.pt")
    with pytest.raises(ModuleNotFoundError):
        torch.load(tmp_path / "model.pt", weights_only=False)
    assert set(read_module_checkpoint(tmp_path / "model.pt")) == {"weight", "bias"}


def test_an_attribute_hung_on_a_mapping_is_not_called(tmp_path: Path) -> None:
    class Hung:
        def __reduce__(self) -> Any:
            hung = dict.fromkeys(("items", "get", "keys"), torch.Tensor)
            return collections.OrderedDict, (), hung, None, iter(parameters.items())

    module = nn.Linear(2, 2)
    parameters = module._parameters
    module.__dict__["_parameters"] = Hung()
    torch.save(module, tmp_path / "model.pt")
    assert set(read_module_checkpoint(tmp_path / "model.pt")) == {"weight", "bias"}


@pytest.mark.slow
def test_a_model_of_transformers_is_read(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=small, vision_config={**small, "image_size": 8, "patch_size": 4})
    module = CLIPModel(config)
    torch.save(module, tmp_path / "model.pt")
    state = read_module_checkpoint(tmp_path / "model.pt")
    assert state.keys() == module.state_dict().keys()


class Evil:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def evils(path: Path) -> dict[str, Any]:
    code = f"open({str(path)!r}, 'w').close()"
    return {
        "system": Evil(os.system, f"touch {path}"),
        "subprocess": Evil(subprocess.check_call, ["touch", str(path)]),
        "exec": Evil(builtins.exec, code),
        "eval": Evil(builtins.eval, code),
        "touch": Evil(Path.touch, path),
        "getattr": Evil(builtins.getattr, "text", "upper"),
        "partial": functools.partial(print, "x"),
        "defaultdict": collections.defaultdict(list),
    }


@pytest.mark.parametrize("where", ["root", "attribute", "parameter", "module"])
@pytest.mark.parametrize("which", evils(Path()))
def test_a_pickle_that_calls_anything_is_refused_and_nothing_runs(
    tmp_path: Path, which: str, where: str
) -> None:
    evil = evils(tmp_path / "it-ran")[which]
    module = nn.Linear(2, 2)
    if where == "attribute":
        module.extra = evil
    elif where != "root":
        module.__dict__[f"_{where}s"]["extra"] = evil
    torch.save(evil if where == "root" else module, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"model\.pt is not a pickled module"):
        read_module_checkpoint(tmp_path / "model.pt")
    assert not (tmp_path / "it-ran").exists()
    assert "StandIn" not in str(torch.serialization.get_safe_globals())


class WithArguments(nn.Module):
    def __getnewargs__(self) -> tuple[int, ...]:
        return (1,)


class WithSlots:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1


def test_objects_made_in_other_ways_than_plain_are_refused(tmp_path: Path) -> None:
    looped = nn.Linear(2, 2)
    looped._modules["self"] = looped
    slotted = nn.Linear(2, 2)
    slotted.extra = WithSlots()
    for odd, says in (
        (WithArguments(), "makes a .*WithArguments of arguments"),
        (slotted, "the state of a .*WithSlots is a tuple"),
        (looped, "holds itself"),
        (Plain(), "the root has no _parameters"),
        ({"a": torch.ones(1)}, "holds a dict, not a module"),
    ):
        torch.save(odd, tmp_path / "model.pt")
        with pytest.raises(WeightsError, match=says):
            read_module_checkpoint(tmp_path / "model.pt")


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(WeightsError, match=r"junk\.pt"):
        read_module_checkpoint(tmp_path / "junk.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"old\.pt"):
        read_module_checkpoint(tmp_path / "old.pt")


def test_the_ordinary_way_in_refuses_a_whole_module(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="Linear"):
        read_checkpoint(tmp_path / "model.pt")
