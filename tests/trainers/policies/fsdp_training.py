"""GRPO of a sharded policy on CPUs: `torchrun … fsdp_training.py CONFIG [key=value…]`, run by `test_fsdp.py`.

accelerate shards on accelerators alone, so it is told that these processes have one each.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from rewardzoo.trainers.config import load_config
from rewardzoo.trainers.grpo import GRPOConfig, train
from rewardzoo.trainers.policies.loading import load_policy

if __name__ == "__main__":
    torch.set_num_threads(1)
    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
    barrier: Any = torch.distributed.barrier
    torch.distributed.barrier = lambda *args, **options: barrier()  # gloo's takes no devices
    config = load_config(GRPOConfig, sys.argv[1], sys.argv[2:])
    sys.exit(train(config, load_policy(config.policy)))
