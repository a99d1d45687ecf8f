from pathlib import Path

import torch
from safetensors.torch import load_file

from rewardzoo.rewards import load
from rewardzoo.trainers.critic.config import ModelSection
from rewardzoo.trainers.critic.tasks import make_task
from rewardzoo.trainers.lab.critic_minis import base, ship


def test_a_critic_begins_at_hpsv3s_network_and_is_shipped_in_16_bits(tmp_path: Path) -> None:
    base(tmp_path / "base")
    task = make_task(ModelSection(base="orm:mini", weights=tmp_path / "base"))
    known = load("hpsv3:mini", device="cpu").net.state_dict()
    begun = task.net.state_dict()
    for name in ("model.model.visual.blocks.0.attn.qkv.weight", "model.model.language_model.norm.weight"):
        assert torch.equal(begun[name], known[f"vlm.{name}"])
    task.save(tmp_path / "orm", {"selection": 2.0}, "Apache-2.0")
    ship(["orm"], runs=tmp_path, out=tmp_path / "shipped")
    shipped = load_file(tmp_path / "shipped" / "orm" / "model.safetensors")
    assert {weight.dtype for weight in shipped.values()} == {torch.float16}
    mini = load("orm:mini", device="cpu", weights=tmp_path / "shipped" / "orm")
    assert sum(map(torch.numel, mini.net.state_dict().values())) == sum(map(torch.numel, begun.values()))
