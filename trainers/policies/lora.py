"""Low-rank adapters (LoRA, arXiv 2106.09685) on the linear layers of Janus's language model, through peft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewardzoo.errors import WeightsError, require

ADAPTER = "adapter"
"""The folder, within a saved policy, that holds its adapter alone."""


@dataclass(frozen=True)
class LoRA:
    """Which layers are adapted, and how: W + alpha / rank * B A."""

    rank: int = 16
    alpha: float = 32
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")


def add(janus: Any, lora: LoRA) -> Any:
    """Put fresh adapters into `janus`, freeze all else; return peft's view of it.

    The same each time: A is drawn from a generator of its own, B is 0, so the policy is what it was.

    Raises:
        ValueError: a target is no linear layer of the language model.
    """
    require("peft", "train")
    import peft

    layers = janus.model.language_model.named_modules()
    known = sorted({name.rpartition(".")[2] for name, layer in layers if isinstance(layer, nn.Linear)})
    if unknown := sorted(set(lora.targets) - set(known)):
        raise ValueError(f"targets {unknown} are not among the language model's linear layers: {known}")
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=rf"model\.language_model\..*\.({'|'.join(lora.targets)})",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(janus, config)


def read(janus: Any, folder: str | Path) -> Any:
    """Put a saved adapter into `janus`, to be trained on; return peft's view of it.

    Raises:
        WeightsError: there is no adapter that fits.
    """
    require("peft", "train")
    import peft

    try:
        return peft.PeftModel.from_pretrained(janus, str(folder), is_trainable=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{folder} holds no adapter that fits this policy ({error}): give the folder "
            f"{ADAPTER!r} of a saved policy and the base it was trained on."
        ) from error


def merged(janus: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold the adapters in `state`, a state dict of the adapted `janus`, into the weights below.

    The module itself is left alone: merging there and back would change its weights by rounding.
    """
    from peft.tuners.lora import LoraLayer

    out = {name.replace(".base_layer.", "."): w for name, w in state.items() if ".lora_" not in name}
    for name, layer in janus.named_modules():
        if isinstance(layer, LoraLayer):
            (adapter,) = layer.active_adapters
            a, b = (state[f"{name}.lora_{which}.{adapter}.weight"].float() for which in "AB")
            weight = out[f"{name}.weight"]
            out[f"{name}.weight"] = (weight.float() + layer.scaling[adapter] * (b @ a)).to(weight.dtype)
    return out
