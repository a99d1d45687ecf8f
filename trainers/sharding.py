"""What weights that are sharded over processes (FSDP2) ask for beside `accelerator.prepare`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor


def ready_to_sample(model: nn.Module) -> None:
    """Have `sample` and `decode` gather sharded weights as `forward` does."""
    if isinstance(model, FSDPModule):
        for name in ("sample", "decode", "encode_images"):
            register_fsdp_forward_method(model, name)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keep the weights whole once they are gathered: sampling asks for them once a token."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def whole(value: Tensor) -> float:
    """Return a number that may be spread over processes."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)


def weights_digest(weights: Iterable[Tensor], *also: object) -> str:
    """Return a name of weights as they are now, and of what else is said; the same in every process."""
    hashed = hashlib.sha256(json.dumps(also, default=str).encode())
    for each in weights:
        own = each.to_local() if isinstance(each, DTensor) else each
        hashed.update(own.detach().cpu().flatten().view(torch.uint8).numpy().data)
    shards = sorted(set(gather_object([hashed.hexdigest()])))
    return hashlib.sha256("".join(shards).encode()).hexdigest()[:12]


def prepare_reference(accelerator: Accelerator, reference: nn.Module) -> nn.Module:
    """Put a frozen policy where it computes; it is sharded where the policy is, and never checkpointed."""
    reference.requires_grad_(False)
    if accelerator.distributed_type != DistributedType.FSDP:
        return reference.to(accelerator.device)
    prepared: nn.Module = accelerator.prepare_model(reference, evaluation_mode=True)
    accelerator._models.remove(prepared)  # what is listed there is saved
    return prepared
