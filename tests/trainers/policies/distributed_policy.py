"""What two processes do: the same images, gradients and files as one, under DDP and under FSDP2.

    torchrun --nproc-per-node 2 distributed_policy.py FOLDER

Run by `test_distributed.py`; any failure is a non-zero exit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent))

from conftest import PROMPTS, make_policy, uniforms

from rewardzoo.trainers.policies import JanusPolicy, LoRA, Sampling

SAMPLING = Sampling(3.0, logp_mode="cfg")


def shard(policy: JanusPolicy) -> None:
    mesh = init_device_mesh("cpu", (2,))
    for layer in policy.janus.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    for name in ("sample", "decode"):
        register_fsdp_forward_method(policy, name)


def check(kind: str, wrapped: Any, policy: JanusPolicy, reference: JanusPolicy, alone: JanusPolicy) -> None:
    """`alone` is the same policy in one process, for all four prompts at once."""
    rank = dist.get_rank()
    prompts, chance = alone.encode([*PROMPTS, PROMPTS[0]]), uniforms(4)
    everyone = alone.sample(prompts, chance, SAMPLING)
    alone(prompts, everyone.tokens, SAMPLING).logprobs.mean().backward()
    mine = slice(2 * rank, 2 * rank + 2)
    images = policy.sample(prompts[mine], chance[mine], SAMPLING)
    assert torch.equal(images.tokens, everyone.tokens[mine]), kind
    assert (policy.decode(images.tokens) == alone.decode(images.tokens)).all(), kind
    wrapped.train()
    wrapped(prompts[mine], images.tokens, SAMPLING).logprobs.mean().backward()
    wanted = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys(), kind
    for name, grad in found.items():
        whole = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        torch.testing.assert_close(whole, wanted[name], rtol=1e-4, atol=1e-5, msg=lambda m: f"{kind} {m}")
    torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1.0).step()
    later = policy.sample(prompts[mine], chance[mine], SAMPLING)
    forced = wrapped(prompts[mine], later.tokens, SAMPLING).logprobs
    assert (forced - later.logprobs).abs().max() < 2e-5, kind
    with torch.no_grad():
        kept = reference(prompts[mine], images.tokens, SAMPLING).logprobs
    assert (kept - everyone.logprobs[mine]).abs().max() < 2e-5, kind


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    for adapters in (None, LoRA(rank=4, alpha=8)):
        alone, policy = make_policy(), make_policy()
        if adapters is not None:
            alone.adapt(adapters)
            policy.adapt(adapters)
        reference = policy.reference()
        check(f"DDP {adapters}", DistributedDataParallel(policy), policy, reference, alone)

    policy = make_policy()
    reference = policy.reference()  # before sharding, and then sharded like the policy
    shard(policy)
    shard(reference)
    check("FSDP2", policy, policy, reference, make_policy())
    whole = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        policy.save(folder, state_dict=whole)
        saved = JanusPolicy.load(folder).state_dict()
        assert all(torch.equal(w, whole[name]) for name, w in saved.items())
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
