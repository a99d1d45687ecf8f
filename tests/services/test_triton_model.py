"""The exported model file, on a stand-in for Triton's side of the Python backend."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rewardzoo.clients.wire import bytes_tensor
from rewardzoo.services.triton import export

from .conftest import FakeReward, load_fake


@dataclass
class Tensor:
    name: str
    data: Any

    def as_numpy(self) -> Any:
        return self.data


class TritonError(Exception):
    CANCELLED, INVALID_ARG = "cancelled", "invalid"


@dataclass
class InferenceResponse:
    output_tensors: Sequence[Tensor] = ()
    error: TritonError | None = None

    def column(self, name: str) -> list[Any]:
        (found,) = (tensor.data for tensor in self.output_tensors if tensor.name == name)
        assert found.shape == (len(found), 1)
        return [x.decode() if isinstance(x, bytes) else x for x in found[:, 0].tolist()]


@dataclass
class Request:
    inputs: dict[str, Any] = field(default_factory=dict)
    cancelled: bool = False

    def is_cancelled(self) -> bool:
        return self.cancelled


def pixels(*shades: int, size: int = 4) -> Any:
    return np.stack([np.full((size, size, 3), shade, np.uint8) for shade in shades])


def column(*items: str | bytes) -> Any:
    return bytes_tensor(items)[:, None]


Start = Callable[..., Any]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Start:
    """Load an exported model file as Triton does, around a fake reward."""
    triton = ModuleType("triton_python_backend_utils")
    triton.__dict__.update(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=InferenceResponse,
        get_input_tensor_by_name=lambda request, name: (
            Tensor(name, request.inputs[name]) if name in request.inputs else None
        ),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    monkeypatch.delitem(sys.modules, "numpy.core.multiarray", raising=False)
    (folder,) = export(["hpsv2:mini"], tmp_path)
    spec = importlib.util.spec_from_file_location("exported_model", folder / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def begin(model: FakeReward | None = None, kind: str = "CPU", **told: str) -> Any:
        asked: dict[str, Any] = {}

        def load(name: str, **options: Any) -> FakeReward:
            asked.update(name=name, **options)
            return model or load_fake(name)

        monkeypatch.setattr(module, "load", load)
        parameters = {key: {"string_value": value} for key, value in {"name": "fake:v1", **told}.items()}
        instance = module.TritonPythonModel()
        instance.initialize(
            {
                "model_config": json.dumps({"parameters": parameters}),
                "model_instance_kind": kind,
                "model_instance_device_id": "3",
            }
        )
        instance.asked = asked
        return instance

    return begin


def test_requests_of_several_sizes_are_scored_and_answered_apart(
    start: Start, png: Callable[..., bytes]
) -> None:
    first, second, third = start().execute(
        [
            Request({"images": pixels(0, 255), "prompts": column("a", "b")}),
            Request({"images": pixels(51, size=7), "prompts": column("c")}),
            Request({"image_files": column(png()), "prompts": column("d")}),
        ]
    )
    assert_allclose(first.column("scores"), [0, 1])
    assert_allclose(second.column("scores"), [0.2], rtol=1e-6)
    assert_allclose(third.column("scores"), [1 / 3], rtol=1e-6)
    assert first.column("errors") == ["", ""]
    assert first.column("details") == ["", ""]


def test_the_provenance_is_told_once_a_request(start: Start) -> None:
    model = load_fake("fake:v1")
    answers = start(model).execute(
        [Request({"images": pixels(*[0] * n), "prompts": column(*["a"] * n)}) for n in (1, 3)]
    )
    told = json.dumps(model.provenance())
    assert [a.column("provenance") for a in answers] == [[told], [told, "", ""]]


def test_no_more_items_than_the_model_takes_are_scored_at_a_time(start: Start) -> None:
    model = load_fake("fake:v1")
    start(model).execute([Request({"images": pixels(*range(20)), "prompts": column(*["a"] * 20)})])
    assert model.sizes == [8, 8, 4]


def test_metadata_reaches_the_reward_and_details_come_back(start: Start) -> None:
    notes = column(b'{"say": "x"}', b"", b'{"refuse": 1}', b"[]", b"\xff")
    (answer,) = start().execute(
        [Request({"images": pixels(1, 1, 1, 1, 1), "prompts": column(*"abcde"), "metadata": notes})]
    )
    assert answer.column("details") == ['{"said": "x"}', "", "", "", ""]
    errors = answer.column("errors")
    assert errors[:3] == ["", "", "the metadata is refused: 1"]
    assert "must be a JSON object" in errors[3]
    assert "not JSON" in errors[4]
    assert np.isnan(answer.column("scores")).tolist() == [False, False, True, True, True]


def test_an_item_that_breaks_the_model_fails_alone(start: Start, png: Callable[..., bytes]) -> None:
    prompts = column("a", "raise", "a", b"\xff", "a")
    first, second = start().execute(
        [
            Request({"images": pixels(*[255] * 5), "prompts": prompts}),
            Request({"image_files": column(png()[:40], png()), "prompts": column("a", "a")}),
        ]
    )
    assert first.column("errors")[1] == "scoring failed with RuntimeError: this prompt breaks the model"
    assert "not UTF-8" in first.column("errors")[3]
    assert_allclose(first.column("scores"), [1, np.nan, 1, np.nan, 1])
    assert "truncated or damaged PNG" in second.column("errors")[0]
    assert_allclose(second.column("scores"), [np.nan, 1 / 3], rtol=1e-6)


def test_a_request_that_nobody_waits_for_is_not_scored(start: Start) -> None:
    model = load_fake("fake:v1")
    gone, kept = start(model).execute(
        [
            Request({"images": pixels(1, 1), "prompts": column("a", "b")}, cancelled=True),
            Request({"images": pixels(255), "prompts": column("c")}),
        ]
    )
    assert gone.error.args == ("the caller is gone", "cancelled")
    assert kept.column("scores") == [1]
    assert model.sizes == [1]


def test_a_request_without_images_or_with_two_kinds_is_refused(
    start: Start, png: Callable[..., bytes]
) -> None:
    neither, both = start().execute(
        [
            Request({"prompts": column("a")}),
            Request({"images": pixels(1), "image_files": column(png()), "prompts": column("a")}),
        ]
    )
    assert neither.error.args == both.error.args == ("give either 'images' or 'image_files'", "invalid")


def test_a_lost_device_ends_the_server_for_its_supervisor(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *call: killed.append(call))
    model = load_fake("fake:v1")
    model.broken = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(torch.AcceleratorError):
        start(model).execute([Request({"images": pixels(1, 2), "prompts": column("a", "b")})])
    assert killed == [(os.getppid(), signal.SIGTERM)]


def test_an_instance_loads_its_reward_on_the_device_that_triton_gives_it(start: Start) -> None:
    assert start().asked == {"name": "fake:v1", "device": "cpu", "weights": None}
    on_gpu = start(kind="GPU", weights="/weights.pt").asked
    assert on_gpu == {"name": "fake:v1", "device": "cuda:3", "weights": "/weights.pt"}


def test_a_backend_built_for_another_numpy_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the old backend imports is what tells it apart.
    monkeypatch.setitem(sys.modules, "numpy.core.multiarray", ModuleType("numpy.core.multiarray"))
    with pytest.raises(RuntimeError, match=f"found NumPy {np.__version__}: pip install"):
        start()
