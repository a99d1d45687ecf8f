"""Rewards by name. A public module of this package is a reward; there is no list to keep."""

from __future__ import annotations

import pkgutil
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path

import torch

from rewardzoo.errors import UnknownRewardError
from rewardzoo.rewards import _weights
from rewardzoo.rewards._model import RewardModel
from rewardzoo.rewards._spec import RewardSpec, Variant
from rewardzoo.rewards._trained import is_place, read_variant


def families() -> list[str]:
    """Return the rewards' names without variants."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name[0] != "_")


def specs() -> list[RewardSpec]:
    """Return every reward's spec."""
    return [_model_class(family).spec for family in families()]


def resolve(name: str) -> tuple[type[RewardModel], Variant]:
    """Return the class and the variant that `name` or `name:variant` means.

    A bare name means the one released variant, quirks apart. Where there are several it is refused.
    `name:path/to/run` and `name:hf://owner/name@revision` mean a variant that was trained (`_trained.py`).

    Raises:
        UnknownRewardError: no reward of that name, or several; the message has the candidates.
        WeightsError: there is no trained variant at the place named.
    """
    family, _, wanted = name.partition(":")
    if family not in families():
        near = get_close_matches(family, families(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownRewardError(f"no reward {name!r}: {hint}there are {', '.join(families())}")
    model = _model_class(family)
    variants = {v.name: v for v in model.spec.variants}
    if wanted in variants:
        return model, variants[wanted]
    if is_place(wanted):
        return model, read_variant(model.spec, wanted)
    candidates = ", ".join(f"{family}:{v}" for v in variants)
    if wanted or ":" in name:
        raise UnknownRewardError(f"no variant {wanted!r} of {family}: there are {candidates}")
    released = [v for v in variants.values() if not (v.is_mini or v.quirk)]
    if len(released) != 1:
        raise UnknownRewardError(f"{name!r} could be any of {candidates}: say which")
    return model, released[0]


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    weights: str | Path | None = None,
) -> RewardModel:
    """Load a reward: `load("hpsv2:v2.1").score(images, prompts)`.

    `device` is a torch device, or "auto" for the GPU where there is one. Without `dtype` the weights are
    float32 on a CPU and `spec.gpu_dtype` elsewhere. `weights` is a checkpoint file or a folder to use
    instead of the hub's. The first call downloads, later ones read the cache.

    Raises:
        UnknownRewardError: no reward of that name, or several.
        WeightsError: the weights cannot be had, or are not what the spec pins.
    """
    model_class, variant = resolve(name)
    files = _weights.locate(variant, weights)
    place = pick_device(device)
    if dtype is None:
        dtype = torch.float32 if place.type == "cpu" else getattr(torch, model_class.spec.gpu_dtype)
    model = model_class.load(variant, files).to(place, dtype)
    model.weights_sha256 = _weights.hashes(variant, files)
    return model


def identify(name: str, weights: str | Path | None = None) -> dict[str, str]:
    """Say what `load` would load, without loading it: reward, variant, recipe and the weights' SHA-256.

    Downloads what is not there, as `load` does.

    Raises:
        UnknownRewardError, WeightsError: as `load`.
    """
    model_class, variant = resolve(name)
    return {
        "reward": model_class.spec.name,
        "variant": variant.name,
        "recipe": variant.recipe,
        "weights_sha256": _weights.hashes(variant, _weights.locate(variant, weights)).get("checkpoint", ""),
    }


def pick_device(device: str) -> torch.device:
    """Return the device meant: "auto" is the GPU where torch sees one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


@cache
def _model_class(family: str) -> type[RewardModel]:
    module = import_module(f"rewardzoo.rewards.{family}")
    (model,) = (
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, RewardModel) and item.__module__ == module.__name__
    )
    return model
