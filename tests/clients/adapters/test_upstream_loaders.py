"""The code of ms-swift and verl that finds and calls a user's reward, with ours in that place.

Both are installed without what they depend on, into a folder of their own: their reward code runs
beside this environment's torch, and none of it needs a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
SWIFT = (
    "ms-swift==4.6.0",
    "modelscope==1.40.2",
    "modelscope_hub==0.5.1",
    "json_repair==0.64.6",
    "dacite==1.9.2",
)
VERL = ("verl==0.9.1", "tensordict==0.15.3", "pyvers==0.2.3", "omegaconf==2.4.0", "codetiming==1.4.0")
YAML = ("antlr4-python3-runtime==4.9.3", "datasets==5.2.0", "dill", "multiprocess", "xxhash", "orjson")


def run(code: str, packages: tuple[str, ...], folder: Path, *arguments: str) -> str:
    target = folder / "packages"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), *packages]
    installed = subprocess.run(install, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"no {packages[0]} to be had: {installed.stderr[-300:]}")
    script = folder / "script.py"
    script.write_text(code)
    here = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, str(target)])}
    done = subprocess.run(
        [sys.executable, script, *arguments], env=environment, capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


SWIFT_PLUGIN = """
import sys
from swift.rewards import orms
from rewardzoo.clients.adapters import swift
orms["served"] = swift.orm(sys.argv[1], "sum")
orms["awaited"] = swift.async_orm(sys.argv[1], {"double": 0.5})
"""
SWIFT_RUN = """
import sys
import numpy, torch
import rewardzoo.rewards
from swift.utils.utils import import_external_file
import_external_file("plugin.py")
from swift.rewards import orms
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import compute_rewards_per_func

def sample(image):
    messages = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "x"}]
    return GRPOSample(messages=messages, images=[image])

ones = numpy.ones((2, 2, 3), numpy.uint8)
functions = [orms[name](args=None) for name in ("served", "awaited")]
samples = [sample(ones), sample("missing.png"), sample(2 * ones)]
rewards = compute_rewards_per_func(samples, functions, None, "cpu")
print(rewards.tolist())
"""


def test_swift_imports_the_plugin_and_computes_rewards_with_it(server: Any, tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(SWIFT_PLUGIN)
    printed = run(SWIFT_RUN, SWIFT, tmp_path, server.url)
    assert printed.splitlines()[-1] == "[[12.0, 12.0], [nan, nan], [24.0, 24.0]]"


VERL_RUN = """
import asyncio, json, sys
import numpy, torch
import rewardzoo.rewards
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.reward import get_custom_reward_fn

class Tokenizer:
    def decode(self, ids, **_):
        return "x"

def config(name):
    reward_kwargs = {"url": sys.argv[1], "reward": {"sum": 1.0, "double": 0.5}, "timeout": 5.0}
    path = "pkg://rewardzoo.clients.adapters.verl"
    function = {"path": path, "name": name, "reward_kwargs": reward_kwargs}
    return OmegaConf.create({"reward": {"custom_reward_function": function}})

def objects(*values):
    array = numpy.empty(len(values), dtype=object)
    array[:] = values
    return array

async def main():
    for name in ("compute_score", "async_compute_score"):
        manager = NaiveRewardManager(config(name), Tokenizer(), get_custom_reward_fn(config(name)))
        data = DataProto(
            batch=TensorDict(
                {"responses": torch.ones(1, 1).long(), "attention_mask": torch.ones(1, 2).long()},
                batch_size=1,
            ),
            non_tensor_batch={
                "data_source": objects("lab"),
                "reward_model": objects({"ground_truth": "a cat"}),
                "extra_info": objects({}),
                "tool_extra_fields": objects({"image": numpy.ones((2, 2, 3), numpy.uint8)}),
            },
        )
        print(json.dumps(await manager.run_single(data), sort_keys=True))

asyncio.run(main())
"""


def test_verl_loads_both_functions_and_its_manager_calls_them(server: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="verl imports it")
    printed = run(VERL_RUN, VERL + YAML, tmp_path, server.url)
    info = {"score": 24.0, "sum": 12.0, "double": 24.0}
    for line in printed.splitlines()[-2:]:
        assert json.loads(line) == {"reward_score": 24.0, "reward_extra_info": info}
