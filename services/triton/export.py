"""A Triton model repository of some rewards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rewardzoo import __version__
from rewardzoo.clients import wire
from rewardzoo.clients.dispatch import MAX_PART_ITEMS
from rewardzoo.clients.server import triton_name
from rewardzoo.rewards import RewardSpec, Variant, resolve

# Requests, of up to 32 MiB from `RewardClient`: what waits has to fit the memory.
_MAX_QUEUE = 128


@dataclass(frozen=True)
class Options:
    """How Triton runs each reward.

    `device` is "auto" for the GPUs where there are some, "cpu", "cuda" for all GPUs or "cuda:1" for one.
    `max_batch` is how many items a request may have and a batch is made of (None: at least as many as
    `RewardClient` sends); the model scores `spec.max_batch` of them at a time. A batch that is not full
    waits `delay_us` microseconds for company. `instances` are copies of the model a device. `weights` maps
    names to files or folders, as they are called where Triton runs. `python_env` is an environment there, a
    folder or an archive of conda-pack's, whose Python the models get in place of Triton's own.
    """

    device: str = "auto"
    max_batch: int | None = None
    delay_us: int = 2000
    instances: int = 1
    weights: Mapping[str, Path] = field(default_factory=dict)
    python_env: Path | None = None

    def __post_init__(self) -> None:
        if self.instances < 1 or self.delay_us < 0 or (self.max_batch is not None and self.max_batch < 1):
            raise ValueError(
                "instances and max_batch must be >= 1 and delay_us >= 0, got "
                f"{self.instances}, {self.max_batch} and {self.delay_us}"
            )


def export(rewards: Sequence[str], out: Path, options: Options | None = None) -> list[Path]:
    """Write one Triton model a reward into the model repository `out`; return their folders.

    A model of the same name that is there is replaced. No weights are read.

    Raises:
        UnknownRewardError: a reward does not exist.
        ValueError: an option has no meaning, or weights are given for a reward that is not among these.
    """
    options = options or Options()
    if unused := sorted(options.weights.keys() - set(rewards)):
        raise ValueError(f"weights are given for {unused}, but the rewards are {list(rewards)}")
    configs = {}
    for name in rewards:
        model, variant = resolve(name)
        full_name = f"{model.spec.name}:{variant.name}"
        configs[full_name] = _config(full_name, model.spec, variant, options, options.weights.get(name))
    folders = []
    for full_name, config in configs.items():
        folder = out / triton_name(full_name)
        (folder / "1").mkdir(parents=True, exist_ok=True)
        (folder / "config.pbtxt").write_text(config)
        shutil.copyfile(Path(__file__).with_name("model.py"), folder / "1" / "model.py")
        folders.append(folder)
    return folders


def _config(name: str, spec: RewardSpec, variant: Variant, options: Options, weights: Path | None) -> str:
    max_batch = options.max_batch or max(MAX_PART_ITEMS, spec.max_batch)
    low, high = spec.score_range
    parameters = {
        "name": name,
        "reward": spec.name,
        "variant": variant.name,
        "recipe": variant.recipe,
        "title": spec.title,
        "paper": spec.paper,
        "weights_license": variant.weights_license,
        "score_low": str(low),
        "score_high": str(high),
        "higher_is_better": str(spec.higher_is_better).lower(),
        "max_batch": str(spec.max_batch),
        "rewardzoo": __version__,
        **({"weights": str(weights)} if weights else {}),
        **({"EXECUTION_ENV_PATH": str(options.python_env)} if options.python_env else {}),
    }
    written = "\n".join(
        f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}"
        for key, value in parameters.items()
    )
    return f"""\
# Written by `rewardzoo triton-export`: the reward {name}.
name: {_text(triton_name(name))}
backend: "python"
max_batch_size: {max_batch}
input [
  # One of these two: RGB pixels, which may differ in size between requests, or PNG, JPEG, WebP files.
  {{
    name: "{wire.IMAGES}" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ]
    allow_ragged_batch: true optional: true
  }},
  {{ name: "{wire.IMAGE_FILES}" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "{wire.PROMPTS}" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "{wire.METADATA}" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [
  {{ name: "{wire.SCORES}" data_type: TYPE_FP32 dims: [ 1 ] }},
  {{ name: "{wire.ERRORS}" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "{wire.DETAILS}" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "{wire.PROVENANCE}" data_type: TYPE_STRING dims: [ 1 ] }}
]
dynamic_batching {{
  max_queue_delay_microseconds: {options.delay_us}
  # A request says itself how long it may wait; past that it never reaches the device.
  default_queue_policy {{ max_queue_size: {_MAX_QUEUE} allow_timeout_override: true }}
}}
instance_group [ {{ count: {options.instances} {_instance_kind(options.device)} }} ]
{written}
"""


def _instance_kind(device: str) -> str:
    kind, _, index = device.partition(":")
    if kind == "cuda" and index.isdecimal():
        return f"kind: KIND_GPU gpus: [ {int(index)} ]"
    kinds = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU"}
    if device not in kinds:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    return f"kind: {kinds[device]}"


def _text(value: str) -> str:
    # Protobuf's text format escapes as JSON does.
    return json.dumps(value, ensure_ascii=False)
