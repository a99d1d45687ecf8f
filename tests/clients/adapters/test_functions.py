"""TRL, ms-swift, verl, OpenRLHF, NeMo-RL, Flow-Factory and plain loops, each by its exact call."""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
import subprocess
import sys
import types
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import pytest
import torch
from PIL import Image

from rewardzoo import ItemsFailedError, Mixture
from rewardzoo.clients.adapters import flow_factory, nemo, openrlhf, plain, swift, trl, verl

ONES = np.ones((2, 2, 3), np.uint8)  # 12 by the server
SEVERAL = Mixture({"sum": 1.0}, held_out=["double"])


def trl_call(images: list[Any], **more: Any) -> dict[str, Any]:
    count = len(images)
    return {
        "prompts": ["a"] * count,
        "completions": ["x"] * count,
        "completion_ids": [[1]] * count,
        "image": images,
        "trainer_state": None,
        "log_extra": lambda *_: None,
        "log_metric": lambda *_: None,
        **more,
    }


def test_trl_gets_none_for_what_cannot_be_scored(server: Any) -> None:
    score = trl.reward_function(server.url, "sum")
    assert score(**trl_call([ONES, b"broken", 2 * ONES])) == [12, None, 24]
    assert score.__name__ == "sum"
    with pytest.raises(ItemsFailedError):
        trl.reward_function(server.url, "sum", on_error="raise")(**trl_call([b"broken"]))


def test_trl_finds_its_async_functions_and_awaits_them(server: Any) -> None:
    score = trl.async_reward_function(server.url, "sum", name="served")
    assert inspect.iscoroutinefunction(score)
    assert score.__name__ == "served"
    assert asyncio.run(score(**trl_call([ONES, None]))) == [12, None]  # type: ignore[arg-type]


def test_trl_logs_the_parts_of_a_mixture_without_what_failed(server: Any) -> None:
    logged: dict[str, float] = {}
    call = trl_call([ONES, None, 3 * ONES], log_metric=logged.__setitem__)
    assert trl.reward_function(server.url, SEVERAL, name="mix")(**call) == [12, None, 36]
    assert logged == {"mix/sum": 24, "mix/double": 48}


def test_trl_takes_conversations_and_draws_images_of_completions(server: Any) -> None:
    call = trl_call([0])
    call["prompts"] = [[{"role": "user", "content": "a red circle"}]]
    score = trl.reward_function(
        server.url, "sum", images=lambda columns: [ONES for _ in columns["completions"]]
    )
    assert score(**call) == [12]
    assert server.seen[-1].tensors["prompts"].tolist() == [b"a red circle"]
    with pytest.raises(ValueError, match="there is no column 'pixels': there are completion_ids"):
        trl.reward_function(server.url, "sum", images="pixels")(**call)


def test_swift_makes_an_instance_and_calls_it_with_the_columns(server: Any) -> None:
    columns = {
        "messages": [[{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "x"}]] * 2,
        "images": [[{"bytes": None, "path": "missing.png"}], [ONES]],
        "trainer_state": None,
    }
    reward = swift.orm(server.url, "sum")(args=None)
    assert reward(["x", "x"], **columns) == [None, 12]
    assert type(reward).__name__ == "sum"
    awaited = swift.async_orm(server.url, "sum")(args=None)
    assert asyncio.iscoroutinefunction(awaited.__call__)
    assert asyncio.run(awaited(["x", "x"], **columns)) == [None, 12]


VERL = {"data_source": "lab", "solution_str": "x", "ground_truth": "a cat", "extra_info": {"image": ONES}}


def test_verl_scores_one_sample_by_keywords(server: Any) -> None:
    config = {"url": server.url, "reward": "sum"}
    assert verl.compute_score(**VERL, **config) == {"score": 12}
    assert server.seen[-1].tensors["prompts"].tolist() == [b"a cat"]
    extra = {"picture": ONES, "caption": "a dog", "nouns": ["dog"]}
    keys: dict[str, Any] = {"image_key": "picture", "prompt_key": "caption", "metadata_keys": ["nouns"]}
    call: dict[str, Any] = {**VERL, "extra_info": extra, **config, **keys}
    assert asyncio.run(verl.async_compute_score(**call)) == {"score": 12}
    assert server.seen[-1].tensors["prompts"].tolist() == [b"a dog"]
    assert server.seen[-1].tensors["metadata"].tolist() == [b'{"nouns": ["dog"]}']
    with pytest.raises(ValueError, match="extra_info has no 'image', only num_turns"):
        verl.compute_score("lab", "x", "a cat", {"num_turns": 1}, **config)


def test_verl_survives_the_journey_to_another_process(server: Any) -> None:
    function = partial(verl.compute_score, url=server.url, reward={"sum": 1.0, "double": 1.0})
    assert cloudpickle.loads(cloudpickle.dumps(function))(**VERL) == {"score": 36, "sum": 12, "double": 24}
    assert inspect.iscoroutinefunction(partial(verl.async_compute_score, url=server.url))


def test_verl_tasks_that_meet_share_requests(server: Any) -> None:
    server.delay = 0.02

    async def all_of_them() -> list[Any]:
        call = partial(verl.async_compute_score, **VERL, url=server.url, reward="sum")
        return await asyncio.gather(*(call() for _ in range(200)))

    assert asyncio.run(all_of_them()) == [{"score": 12}] * 200
    assert len(server.seen) < 50


def base64_png() -> str:
    file = io.BytesIO()
    Image.fromarray(ONES).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_openrlhf_is_called_by_position_and_gets_tensors(server: Any) -> None:
    reward_func = openrlhf.reward_func(server.url, SEVERAL)
    labels = [{"image": base64_png(), "prompt": "a dog", "metadata": {"k": 1}}, base64_png()]
    found = reward_func(["q1", "q2"], ["templated", "p2"], labels)
    total = sum(base64.b64decode(base64_png()))  # files travel as they are, and the server sums their bytes
    assert found["rewards"].tolist() == found["scores"].tolist() == [total, total]
    # As OpenRLHF reads it: info[key] = torch.tensor([value.flatten()[0].item()]).
    assert {name: values.flatten()[0].item() for name, values in found["extra_logs"].items()} == {
        "sum": total,
        "double": 2 * total,
    }
    assert server.seen[0].tensors["prompts"].tolist() == [b"a dog", b"p2"]
    assert server.seen[0].tensors["metadata"].tolist() == [b'{"k": 1}', b"{}"]


def test_openrlhf_answers_no_samples_with_none(server: Any) -> None:
    assert openrlhf.reward_func(server.url, "sum")([], [], [])["rewards"].tolist() == []


def test_openrlhf_names_a_label_without_an_image(server: Any) -> None:
    with pytest.raises(ValueError, match="must have an 'image', this one has answer"):
        openrlhf.reward_func(server.url, "sum")(["q"], ["p"], ['{"answer": 4}'])


def test_a_plain_loop_and_t2i_r1_call_it_alike(server: Any) -> None:
    score = plain.reward_function(server.url, "sum", metadata=["nouns", "task_type"])
    images = [Image.fromarray(ONES)]
    # T2I-R1: reward_func(prompts=, images=, **columns)
    assert score(prompts=["a"], images=images, nouns=[["cat"]], task_type=["color"], spatial_info=[""]) == [
        12
    ]
    assert server.seen[-1].tensors["metadata"].tolist() == [b'{"nouns": ["cat"], "task_type": "color"}']
    assert plain.reward_function(server.url, "sum")(images, ["a"]) == [12]


@dataclass
class Output:
    rewards: Any
    extra_info: Any = None


class Pointwise:
    def __init__(self, config: Any, accelerator: Any) -> None:
        self.config, self.accelerator = config, accelerator


class Return(NamedTuple):
    observations: Any
    metadata: Any
    next_stop_strings: Any
    rewards: Any
    terminateds: Any
    answers: Any


# Flow-Factory and NeMo-RL are not on the index: modules of the same names and call shapes stand in.
def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    for made in (flow_factory._served_reward, nemo.environment_class):
        made.cache_clear()


def test_flow_factory_finds_the_class_by_its_path(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(
        monkeypatch, "flow_factory.rewards.abc", PointwiseRewardModel=Pointwise, RewardModelOutput=Output
    )
    found = getattr(flow_factory, "ServedReward")  # noqa: B009  # as its registry does
    config = types.SimpleNamespace(extra_kwargs={"url": server.url, "reward": {"sum": 0.5}})
    model = found(config=config, accelerator=None)
    assert isinstance(model, Pointwise)
    assert list(inspect.signature(model.__call__).parameters) == ["prompt", "image"]
    output = model(prompt=["a", "b"], image=[Image.fromarray(ONES)] * 2)
    assert torch.as_tensor(output.rewards).tolist() == [6, 6]
    assert output.extra_info == {"sum": [12, 12]}
    with pytest.raises(AttributeError, match="has no attribute 'Missing'"):
        getattr(flow_factory, "Missing")  # noqa: B009


def test_nemo_steps_once_and_terminates(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(
        monkeypatch, "nemo_rl.environments.interfaces", EnvironmentInterface=object, EnvironmentReturn=Return
    )
    config = {"url": server.url, "reward": "sum", "metadata_keys": ["nouns"]}
    environment = nemo.environment_class()(config)
    log = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "x"}]
    infos = [{"image": ONES, "nouns": ["cat"]}, {"image": ONES, "prompt": "a dog"}]
    found = environment.step([log, log], infos)
    assert found.rewards.tolist() == [12, 12]
    assert found.terminateds.tolist() == [True, True]
    assert [observation["role"] for observation in found.observations] == ["environment"] * 2
    assert found.metadata == infos
    assert server.seen[0].tensors["prompts"].tolist() == [b"a cat", b"a dog"]
    assert server.seen[0].tensors["metadata"].tolist() == [b'{"nouns": ["cat"]}', b"{}"]
    batch = {"rewards": found.rewards}
    assert environment.global_post_process_and_metrics(batch) == (batch, {"reward": 12})


def test_no_adapter_imports_a_trainer_or_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, rewardzoo.clients.adapters as a\n"
        "names = [m.name for m in pkgutil.iter_modules(a.__path__)]\n"
        "[importlib.import_module(f'{a.__name__}.{name}') for name in names]\n"
        "heavy = ('torch', 'trl', 'swift', 'verl', 'ray', 'transformers', 'flow_factory', 'nemo_rl')\n"
        "print(len(names), [m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "12 []"
