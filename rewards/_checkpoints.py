"""State dicts from files, safely: `.safetensors` as they are, PyTorch's files through a converted copy."""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rewardzoo.errors import WeightsError
from rewardzoo.rewards._hashes import home, ledger, sha256
from rewardzoo.rewards._modules import read_module

logger = logging.getLogger(__name__)

_WRAPPERS = ("state_dict", "model")  # of open_clip and Lightning; of BLIP and GroundingDINO
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file, without running what it may contain, or from a model's folder.

    A `{"state_dict": …}` or `{"model": …}` wrapper is unwrapped. Tensors are memory-mapped where the format
    allows it.

    A file of PyTorch's (`.pt`, `.pth`, `.bin`) is converted to safetensors at first use, in
    `HF_HOME/rewardzoo/converted`, and read from there; later on only that copy is read, after its hash is
    compared with the one recorded. Where no copy can be written, the file itself is read each time.

    A folder is one of `transformers`: `model.safetensors` or `pytorch_model.bin`, or an index and its shards.

    Raises:
        WeightsError: not a checkpoint that can be read safely, or not a mapping of names to tensors.
    """
    if not path.is_dir():
        return _read(path, _read_torch)
    state: dict[str, Tensor] = {}
    for shard in weight_files(path):
        part = _read(shard, _read_torch)
        if twice := sorted(part.keys() & state.keys()):
            raise WeightsError(f"{path}: {twice[0]!r} is in {shard.name} and in another shard")
        state |= part
    return state


def read_module_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a module that was pickled whole (`torch.save(model)`).

    None of its classes is imported and none of its code runs; see `rewards/_modules.py`. Converted at first
    use as in `read_checkpoint`.

    Raises:
        WeightsError: not such a file, or it holds more than modules and plain data.
    """
    return _read(path, read_module)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of a folder of `transformers`; safetensors come first.

    Raises:
        WeightsError: there are none, or a shard is missing.
    """
    for name in _WEIGHTS:
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            shards = shards_of(index)
            if missing := [shard.name for shard in shards if not shard.exists()]:
                raise WeightsError(f"{folder} lacks {', '.join(missing)}, which {index.name} names")
            return shards
    raise WeightsError(f"{folder} holds no weights: {', '.join(_WEIGHTS)} or an index of shards")


def shards_of(index: Path) -> list[Path]:
    """Return the shards, there or not, that an index of `transformers` names.

    Raises:
        WeightsError: not such an index.
    """
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        strange = [name for name in names if Path(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is not an index of shards: {error!r}") from error
    if strange:
        raise WeightsError(f"{index} names {strange[0]!r}, which is not in its own folder")
    return [index.parent / name for name in names]


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy `state` into `net`; every key must be used and every weight given.

    Raises:
        WeightsError: keys or shapes differ; the message names the first few.
    """
    try:
        net.load_state_dict(state, strict=True)
    except RuntimeError as error:
        shown = "\n".join(str(error).splitlines()[:6])
        raise WeightsError(f"{path} does not fit this architecture: {shown}") from error


def converted_sha256(path: Path) -> str | None:
    """Return the SHA-256 of the safetensors that stands in for a file of PyTorch's, None where none does."""
    if path.is_dir() or path.suffix == ".safetensors":
        return None
    original = sha256(path)
    with ledger() as known:
        return known.get(_entry(original)) if _copy_of(original).exists() else None


def _read(path: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if not path.is_file():
        raise WeightsError(f"{path} is not a checkpoint that can be read: there is no such file")
    original = sha256(path)
    copy = _copy_of(original)
    with ledger() as known:
        expected = known.get(_entry(original))
    if expected is not None and copy.exists():
        try:
            if sha256(copy) == expected:
                return _read_safetensors(copy)
            logger.warning("%s is not as it was made of %s: making it anew", copy, path)
        except (OSError, WeightsError) as error:
            logger.warning("%s cannot be read (%s): making it anew", copy, error)
    state = read(path)
    try:
        _write_safetensors(state, copy, like=path)
        digest = sha256(copy)
        with ledger() as known:
            known[_entry(original)] = digest
        return _read_safetensors(copy)
    # A full disk, a read-only home, a dtype that safetensors lacks: a cache is never worth a failure.
    except Exception as error:
        logger.info("%s is not converted to safetensors and will be read as it is: %s", path, error)
        return state


def _entry(original: str) -> str:
    return f"converted:{original}"


def _copy_of(original: str) -> Path:
    return home() / "converted" / f"{original}.safetensors"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise WeightsError(f"{path} is not a checkpoint that can be read: {error}") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        # Files from before PyTorch 1.6 are no archives, and only an archive can be mapped.
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        raise WeightsError(f"{path} is not a checkpoint that can be read: {error}") from error
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
            break
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds a {type(state).__name__}, not a state dict")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"{path}: the entry {key!r:.60} is a {type(value).__name__}, not a tensor: "
                "this is not a state dict"
            )
    return dict(state)


def _write_safetensors(state: Mapping[str, Tensor], path: Path, *, like: Path) -> None:
    """Write a file that is there whole or not at all, with the permissions of `like`."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        save_file(_apart(state), fresh)
        shutil.copymode(like, fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give each tensor contiguous memory of its own, which safetensors asks for: tied ones are copied."""
    out: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, tensor in state.items():
        tensor = tensor.detach()
        storage = tensor.untyped_storage().data_ptr()
        if storage in storages or not tensor.is_contiguous():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        storages.add(storage)
        out[key] = tensor
    return out
