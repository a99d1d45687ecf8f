"""The model repository that `rewardzoo triton-export` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewardzoo.errors import UnknownRewardError
from rewardzoo.services.triton import Options, export
from rewardzoo.services.triton.export import _config

from .conftest import FakeReward


def parsed(config: Path) -> Any:
    pytest.importorskip("tritonclient")
    pytest.importorskip("grpc")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(config.read_text(), model_config_pb2.ModelConfig())


def test_an_exported_configuration_is_one_that_triton_reads(tmp_path: Path) -> None:
    folders = export(["hpsv2:mini", "vqascore:qwen2.5-vl-7b"], tmp_path / "repo")
    assert [f.name for f in folders] == ["hpsv2.mini", "vqascore.qwen2.5-vl-7b"]
    config = parsed(folders[0] / "config.pbtxt")
    assert config.name == "hpsv2.mini"
    assert config.backend == "python"
    assert {i.name: (i.data_type, list(i.dims), i.optional, i.allow_ragged_batch) for i in config.input} == {
        "images": (2, [-1, -1, 3], True, True),
        "image_files": (13, [1], True, False),
        "prompts": (13, [1], False, False),
        "metadata": (13, [1], True, False),
    }
    assert {o.name: (o.data_type, list(o.dims)) for o in config.output} == {
        "scores": (11, [1]),
        "errors": (13, [1]),
        "details": (13, [1]),
        "provenance": (13, [1]),
    }
    assert config.max_batch_size == 64
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert [(g.count, g.kind, list(g.gpus)) for g in config.instance_group] == [(1, 0, [])]
    told = {key: value.string_value for key, value in config.parameters.items()}
    assert told["name"] == "hpsv2:mini"
    assert told["recipe"] == "hpsv2/antialias"
    assert "weights" not in told


@pytest.mark.parametrize(
    ("device", "kind", "gpus"), [("cpu", 2, []), ("cuda", 1, []), ("cuda:1", 1, [1]), ("auto", 0, [])]
)
def test_options_reach_the_configuration(tmp_path: Path, device: str, kind: int, gpus: list[int]) -> None:
    options = Options(
        device=device,
        max_batch=5,
        delay_us=0,
        instances=3,
        weights={"hpsv2:mini": Path('/a "b"/ä\\c')},
        python_env=Path("/env"),
    )
    (folder,) = export(["hpsv2:mini"], tmp_path, options)
    config = parsed(folder / "config.pbtxt")
    assert config.max_batch_size == 5
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert [(g.count, g.kind, list(g.gpus)) for g in config.instance_group] == [(3, kind, gpus)]
    assert config.parameters["weights"].string_value == '/a "b"/ä\\c'
    assert config.parameters["EXECUTION_ENV_PATH"].string_value == "/env"


def test_a_reward_that_scores_few_at_a_time_still_takes_the_clients_requests() -> None:
    config = _config("fake:v1", FakeReward.spec, FakeReward.spec.variants[0], Options(), None)
    assert "max_batch_size: 64" in config


def test_a_bare_name_is_exported_as_what_it_means_and_again_in_place(tmp_path: Path) -> None:
    first = export(["imagereward"], tmp_path)
    again = export(["imagereward"], tmp_path, Options(max_batch=3))
    assert first == again == [tmp_path / "imagereward.v1.0"]
    assert parsed(first[0] / "config.pbtxt").max_batch_size == 3


def test_what_cannot_be_exported_is_refused_and_nothing_written(tmp_path: Path) -> None:
    out = tmp_path / "repo"
    with pytest.raises(UnknownRewardError, match="no reward 'nope'"):
        export(["hpsv2:mini", "nope"], out)
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, got 'tpu'"):
        export(["hpsv2:mini"], out, Options(device="tpu"))
    with pytest.raises(ValueError, match=r"weights are given for \['a'\]"):
        export(["hpsv2:mini"], out, Options(weights={"a": Path("b")}))
    with pytest.raises(ValueError, match="must be >= 1"):
        Options(instances=0)
    assert not out.exists()
