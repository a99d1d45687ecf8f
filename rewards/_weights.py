"""Where weights come from: the hub at a pinned commit, a path of the user's, or the package itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from rewardzoo.errors import WeightsError
from rewardzoo.rewards._checkpoints import (
    converted_sha256,
    load_strictly,
    read_checkpoint,
    read_module_checkpoint,
    shards_of,
)
from rewardzoo.rewards._hashes import files_in, home, ledger, matches, sha256
from rewardzoo.rewards._spec import HubFile, HubFolder, LocalPath, PackagedFile, Source, Variant, WebFile

__all__ = [
    "CHECKPOINT",
    "hashes",
    "is_on_disk",
    "load_strictly",
    "locate",
    "read_checkpoint",
    "read_module_checkpoint",
    "sha256",
]

CHECKPOINT = "checkpoint"
"""The key, among a variant's files, of the weights themselves."""


def locate(variant: Variant, weights: str | Path | None = None) -> dict[str, Path]:
    """Return the variant's files and folders on disk, downloading (with a progress bar) what the hub has.

    `weights` stands in for the hub: a checkpoint file, or a folder that holds files by their names, the
    checkpoint among them. Where the checkpoint itself is a folder, `weights` is that folder, or one that
    holds it by its name.

    Raises:
        WeightsError: a file is missing, cannot be downloaded or is not the one the spec pins.
    """
    override = Path(weights).expanduser() if weights is not None else None
    if override is not None and not override.exists():
        raise WeightsError(f"weights={str(weights)!r}: no such file or folder")
    found = {}
    for key, source in variant.files.items():
        if override is not None and override.is_dir():
            found[key] = _in_folder(override, source, is_checkpoint=key == CHECKPOINT)
        elif override is not None and key == CHECKPOINT:
            if isinstance(source, HubFolder):
                raise WeightsError(
                    f"weights={str(weights)!r} is a file, but the checkpoint is a folder: give one with "
                    f"{' '.join(source.patterns)}"
                )
            found[key] = override
        else:
            found[key] = _fetch(source)
    return found


def _fetch(source: Source) -> Path:
    if isinstance(source, PackagedFile):
        return _packaged(source)
    if isinstance(source, WebFile):
        return _from_web(source)
    if isinstance(source, LocalPath):
        return _existing(Path(source.path))
    return _from_hub(source) if isinstance(source, HubFile) else _folder_from_hub(source)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise WeightsError(f"{path} is named by the reward.json beside it, and is not there")
    return path


def is_on_disk(variant: Variant) -> bool:
    """Whether every file of the variant is here already."""
    return all(map(_is_here, variant.files.values()))


def _is_here(source: Source) -> bool:
    if isinstance(source, PackagedFile):
        return _package_path(source).exists()
    if isinstance(source, WebFile):
        return _web_path(source).exists()
    if isinstance(source, LocalPath):
        return Path(source.path).exists()
    if isinstance(source, HubFile):
        return isinstance(try_to_load_from_cache(source.repo, source.name, revision=source.revision), str)
    try:
        return not _lacks(_snapshot(source, local_files_only=True), source)
    except (LocalEntryNotFoundError, OSError, WeightsError):
        return False


def hashes(variant: Variant, files: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of each of a variant's files as `locate` found them, for the record.

    Of a folder the files count that its source names. Where the checkpoint is read from a converted copy,
    the copy's is under "converted".
    """
    found = {}
    for key, path in files.items():
        source = variant.files.get(key)
        found[key] = sha256(path, source.patterns if isinstance(source, HubFolder) else None)
    copy = converted_sha256(files[CHECKPOINT]) if CHECKPOINT in files else None
    return found if copy is None else {**found, "converted": copy}


def _from_hub(file: HubFile) -> Path:
    where = f"{file.repo}/{file.name} at {file.revision[:12]}"
    try:
        path = Path(hf_hub_download(file.repo, file.name, revision=file.revision))
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        wanted = f"{file.repo} {file.name} --revision {file.revision}"
        raise _unreachable(where, wanted, error) from error
    digest = sha256(path)
    name = path.resolve().name
    expected = file.sha256 or (name if len(name) == 64 else None)  # the hub files big blobs by their hash
    with ledger() as known:
        expected = expected or known.setdefault(f"hub:{where}", digest)
    if digest != expected:
        raise WeightsError(
            f"{where} has SHA-256 {digest}, expected {expected}: the download is damaged or was replaced. "
            f"Delete {path.resolve()} and load again."
        )
    return path


def _snapshot(source: HubFolder, *, local_files_only: bool = False) -> Path:
    return Path(
        snapshot_download(
            source.repo,
            revision=source.revision,
            allow_patterns=list(source.patterns),
            local_files_only=local_files_only,
        )
    )


def _folder_from_hub(source: HubFolder) -> Path:
    where = f"{source.repo} at {source.revision[:12]}"
    patterns = " ".join(f"--include '{pattern}'" for pattern in source.patterns)
    wanted = f"{source.repo} {patterns} --revision {source.revision}"
    try:
        path = _snapshot(source)
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise _unreachable(where, wanted, error) from error
    if lacks := _lacks(path, source):
        raise WeightsError(
            f"{where} is in the cache {path} without {lacks}: its download did not end. Where the hub can be "
            f"reached run `hf download {wanted}`."
        )
    for name in files_in(path, source.patterns):
        blob = (path / name).resolve()
        if len(blob.name) == 64 and sha256(blob) != blob.name:  # the hub files big blobs by their hash
            raise WeightsError(f"{where}: {name} is damaged. Delete {blob} and load again.")
    digest = sha256(path, source.patterns)
    entry = f"hub:{where} {' '.join(source.patterns)}"
    with ledger() as known:
        expected = known.setdefault(entry, digest)
    if digest != expected:
        raise WeightsError(
            f"{where} has SHA-256 {digest}, at first it had {expected}: the download is damaged or was "
            f"changed. Delete {path} and load again; if the change is meant, delete the entry {entry!r} of "
            f"{home() / 'sha256.json'} too."
        )
    return path


def _lacks(folder: Path, source: HubFolder) -> str:
    """Say which of a folder's files are not there, as far as can be known without the hub."""
    names = files_in(folder, source.patterns)
    kinds = [pattern for pattern in source.patterns if pattern.endswith((".safetensors", ".bin"))]
    if not names or (kinds and not files_in(folder, kinds)):
        return f"a file like {' or '.join(kinds or source.patterns)}"
    shards = [s for n in names if n.endswith(".index.json") for s in shards_of(folder / n)]
    # An index may name files of a kind that is not wanted here.
    gone = [s.relative_to(folder).as_posix() for s in shards if not s.exists()]
    return ", ".join(name for name in gone if matches(name, kinds))


def _web_path(file: WebFile) -> Path:
    return home() / "web" / file.sha256 / file.name


def _from_web(file: WebFile) -> Path:
    from torch.hub import download_url_to_file

    path = _web_path(file)
    if not path.exists():
        try:
            if constants.is_offline_mode():
                raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
            path.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(file.url, str(path), hash_prefix=file.sha256)
        except (OfflineModeIsEnabled, OSError, RuntimeError) as error:
            raise WeightsError(
                f"{file.url} is not in the cache {path.parent} and cannot be downloaded: {error}. Get it on "
                "a machine that reaches the server, and put it there or give it with weights=PATH."
            ) from error
    digest = sha256(path)
    if digest != file.sha256:
        raise WeightsError(
            f"{path} has SHA-256 {digest}, expected {file.sha256}: it is damaged or was changed. "
            "Delete it and load again."
        )
    return path


def _unreachable(where: str, wanted: str, error: Exception) -> WeightsError:
    reason = (
        "HF_HUB_OFFLINE is set"
        if constants.is_offline_mode()
        else f"the hub did not give it ({type(error).__name__})"
    )
    return WeightsError(
        f"{where} is not in the cache {constants.HF_HUB_CACHE} and {reason}. On a machine that reaches "
        f"the hub run `hf download {wanted}` and bring the cache here (HF_HOME), or give a copy with "
        "weights=PATH."
    )


def _in_folder(folder: Path, source: Source, *, is_checkpoint: bool) -> Path:
    path = folder / Path(source.name).name
    if path.exists():
        return path
    if not is_checkpoint:
        return _fetch(source)
    if isinstance(source, PackagedFile) and not path.suffix:  # the checkpoint is a folder: this one
        return folder
    if not isinstance(source, HubFolder):
        raise WeightsError(f"weights={str(folder)!r}: there is no {path.name} in that folder")
    if lacks := _lacks(folder, source):
        raise WeightsError(f"weights={str(folder)!r}: that folder is without {lacks}")
    return folder


def _package_path(file: PackagedFile) -> Path:
    return Path(__file__).parent / file.name


def _packaged(file: PackagedFile) -> Path:
    path = _package_path(file)
    if not path.exists():
        raise WeightsError(
            f"{path} is missing from this installation. Reinstall rewardzoo, or train it anew: "
            "python -m rewardzoo.trainers.lab.train_minis"
        )
    return path
