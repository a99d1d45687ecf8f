"""Where weights come from: the hub at a pinned commit, a path of the user's, or the package itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import Tensor

from rewardzoo.errors import WeightsError
from rewardzoo.rewards._spec import HubFile, PackagedFile, Variant

CHECKPOINT = "checkpoint"
"""The key, among a variant's files, of the weights themselves."""


def locate(variant: Variant, weights: str | Path | None = None) -> dict[str, Path]:
    """Return the variant's files on disk, downloading (with a progress bar) what the hub has to give.

    `weights` stands in for the hub: a checkpoint file, or a folder that holds the files by their names.

    Raises:
        WeightsError: a file is missing, cannot be downloaded or is not the one the spec pins.
    """
    override = Path(weights).expanduser() if weights is not None else None
    if override is not None and not override.exists():
        raise WeightsError(f"weights={str(weights)!r}: no such file or folder")
    found = {}
    for key, file in variant.files.items():
        if override is not None and override.is_dir():
            found[key] = _in_folder(override, file)
        elif override is not None and key == CHECKPOINT:
            found[key] = override
        else:
            found[key] = _packaged(file) if isinstance(file, PackagedFile) else _from_hub(file)
    return found


def is_on_disk(variant: Variant) -> bool:
    """Whether every file of the variant is here already."""
    return all(
        _package_path(file).is_file()
        if isinstance(file, PackagedFile)
        else isinstance(try_to_load_from_cache(file.repo, file.name, revision=file.revision), str)
        for file in variant.files.values()
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors`, or from a PyTorch file without running what it may contain.

    A `{"state_dict": …}` wrapper is unwrapped. Tensors are memory-mapped where the format allows it.

    Raises:
        WeightsError: the file is not a checkpoint that can be read safely.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise WeightsError(f"{path} is not a checkpoint that can be read: {error}") from error
    return state.get("state_dict", state) if isinstance(state, dict) else _not_a_state_dict(path, state)


def load_strictly(net: torch.nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy `state` into `net`; every key must be used and every weight given.

    Raises:
        WeightsError: keys or shapes differ; the message names the first few.
    """
    try:
        net.load_state_dict(state, strict=True)
    except RuntimeError as error:
        shown = "\n".join(str(error).splitlines()[:6])
        raise WeightsError(f"{path} does not fit this architecture: {shown}") from error


def sha256(path: Path) -> str:
    """Return the file's SHA-256, remembered by path, size and time so that a big file is read once."""
    path = path.resolve()
    stat = path.stat()
    key = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
    with _ledger() as known:
        if key in known:
            return known[key]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with _ledger() as known:
        known[key] = digest
    return digest


def _from_hub(file: HubFile) -> Path:
    where = f"{file.repo}/{file.name} at {file.revision[:12]}"
    try:
        path = Path(hf_hub_download(file.repo, file.name, revision=file.revision))
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = (
            "HF_HUB_OFFLINE is set"
            if constants.is_offline_mode()
            else f"the hub did not give it ({type(error).__name__})"
        )
        raise WeightsError(
            f"{where} is not in the cache {constants.HF_HUB_CACHE} and {reason}. On a machine that reaches "
            f"the hub run `hf download {file.repo} {file.name} --revision {file.revision}` and bring the "
            "cache here (HF_HOME), or give a copy of the file with weights=PATH."
        ) from error
    digest = sha256(path)
    name = path.resolve().name
    expected = file.sha256 or (name if len(name) == 64 else None)  # the hub files big blobs by their hash
    with _ledger() as known:
        expected = expected or known.setdefault(f"hub:{where}", digest)
    if digest != expected:
        raise WeightsError(
            f"{where} has SHA-256 {digest}, expected {expected}: the download is damaged or was replaced. "
            f"Delete {path.resolve()} and load again."
        )
    return path


def _in_folder(folder: Path, file: HubFile | PackagedFile) -> Path:
    path = folder / Path(file.name).name
    if not path.is_file():
        raise WeightsError(f"weights={str(folder)!r}: there is no {path.name} in that folder")
    return path


def _package_path(file: PackagedFile) -> Path:
    return Path(__file__).parent / file.name


def _packaged(file: PackagedFile) -> Path:
    path = _package_path(file)
    if not path.is_file():
        raise WeightsError(
            f"{path} is missing from this installation. Reinstall rewardzoo, or train it anew: "
            "python -m rewardzoo.trainers.lab.train_minis"
        )
    return path


def _not_a_state_dict(path: Path, state: object) -> dict[str, Tensor]:
    raise WeightsError(f"{path} holds a {type(state).__name__}, not a state dict")


@contextmanager
def _ledger() -> Iterator[dict[str, str]]:
    """Open the record of hashes under HF_HOME; what is added is written back; a lost write is harmless."""
    path = Path(constants.HF_HOME) / "rewardzoo" / "sha256.json"
    try:
        known: dict[str, str] = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    before = len(known)
    yield known
    if len(known) > before:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"{path.name}.{os.getpid()}")
            fresh.write_text(json.dumps(known, indent=1))
            fresh.replace(path)
        except OSError:
            return  # a read-only home: hash again next time
