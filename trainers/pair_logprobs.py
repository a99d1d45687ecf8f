"""Log-probabilities of the two images of a pair, under the policy that learns and the one it started from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from rewardzoo.trainers.policies.policy import PromptBatch, Sampling
from rewardzoo.trainers.preferences import Preferences
from rewardzoo.trainers.run import Run


def read_conditions(run: Run[Any], pairs: Preferences) -> PromptBatch:
    """Return the prompts (M, L) of pairs as the policy reads them, blank where they are dropped."""
    prompts = run.policy.encode(pairs.prompts).to(run.accelerator.device)
    return run.policy.unconditional(prompts, torch.from_numpy(pairs.blank).to(run.accelerator.device))


def read_tokens(run: Run[Any], pairs: Preferences) -> Tensor:
    """Return the images of M pairs, int64 (M, 2, N): chosen, then rejected."""
    both = np.stack([pairs.chosen, pairs.rejected], 1)
    return torch.from_numpy(both).to(run.accelerator.device, torch.int64)


def pair_logprobs(model: nn.Module, prompts: PromptBatch, tokens: Tensor, sampling: Sampling) -> Tensor:
    """Return the sums over tokens (m, 2, N) of their log-probabilities given prompts (m, L): (m, 2)."""
    logprobs: Tensor = model(prompts.repeat_interleave(2), tokens.flatten(0, 1), sampling).logprobs
    return logprobs.float().sum(1).view(-1, 2)


@torch.no_grad()
def with_reference(run: Run[Any], model: nn.Module, pairs: Preferences) -> Preferences:
    """Give pairs their log-probabilities under a model as it is now; each process computes a share."""
    if not len(pairs):
        return pairs
    size, sampling = run.config.optimizer.micro_batch_size, run.config.sampling.sampling()
    # As many in each process, since a sharded model is computed by all together; the surplus is dropped.
    share = -(-len(pairs) // run.processes)
    mine = (np.arange(share) + share * run.accelerator.process_index) % len(pairs)
    found, training = [], model.training
    model.eval()  # adapters may drop out in training
    for start in range(0, share, size):
        some = pairs[mine[start : start + size]]
        with run.accelerator.autocast():
            both = pair_logprobs(model, read_conditions(run, some), read_tokens(run, some), sampling)
        found.append(both.cpu().numpy())
    model.train(training)
    everyone = np.concatenate(gather_object([np.concatenate(found)]))
    return replace(pairs, reference=everyone[: len(pairs)])
