"""Variants that users trained: a folder with `reward.json`, the weights, and what their loader reads.

    run/
      reward.json       which reward this is a variant of, and how it is scored
      model/…           the files that the manifest names

`orm:path/to/run` means the variant in that folder, `orm:hf://owner/name@revision` one in a hub repository.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os.path import normpath
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from rewardzoo.errors import WeightsError
from rewardzoo.rewards._spec import LocalPath, RewardSpec, Variant

MANIFEST = "reward.json"
HUB = "hf://"
_FIELDS = {"reward", "recipe", "weights_license", "files"}


def is_place(variant: str) -> bool:
    """Say whether a variant's name is the place of a trained one: a path with a slash, or `hf://…`."""
    return "/" in variant or "\\" in variant


def read_variant(spec: RewardSpec, place: str) -> Variant:
    """Read the manifest of a trained variant, downloading its repository where `place` is `hf://…`.

    The variant is named after its folder.

    Raises:
        WeightsError: there is no manifest, it cannot be read, or it is that of another reward.
    """
    folder = _download(place) if place.startswith(HUB) else Path(place).expanduser().resolve()
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"{place!r} holds no trained reward: there is no {path}. A path is that of a folder which "
            "`rewardzoo train critic` wrote; for weights of a known variant use weights=PATH."
        ) from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if lacks := sorted(_FIELDS - set(manifest)):
        raise WeightsError(f"{path} is without {', '.join(lacks)}")
    if manifest["reward"] != spec.name:
        raise WeightsError(
            f"{path} is a variant of {manifest['reward']!r}: load it as that, not {spec.name!r}"
        )
    name = _name_of(place)
    if name in {variant.name for variant in spec.variants}:
        raise WeightsError(
            f"{place!r} would be called {spec.name}:{name}, as a released variant is: rename it"
        )
    return Variant(
        name,
        manifest["recipe"],
        {**_files(folder, manifest["files"]), "manifest": LocalPath(str(path))},
        manifest["weights_license"],
        manifest.get("config", {}),
    )


def write_variant(
    folder: Path,
    reward: str,
    *,
    recipe: str,
    files: Mapping[str, str],
    weights_license: str,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write the manifest that makes `folder` a variant of `reward`; `files` are names inside the folder."""
    manifest = {
        "reward": reward,
        "recipe": recipe,
        "weights_license": weights_license,
        "files": dict(files),
        "config": dict(config or {}),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _name_of(place: str) -> str:
    if place.startswith(HUB):
        return place.removeprefix(HUB).partition("@")[0].rpartition("/")[2]
    return Path(place).expanduser().resolve().name


def _files(folder: Path, names: Mapping[str, str]) -> dict[str, LocalPath]:
    found = {}
    for key, name in names.items():
        # Not resolved: files of the hub's cache are links out of their folder.
        path = Path(normpath(folder / name))
        if not path.is_relative_to(folder):
            raise WeightsError(f"{folder / MANIFEST}: {key} is {name!r}, which is outside of the folder")
        found[key] = LocalPath(str(path))
    return found


def _download(place: str) -> Path:
    repository, _, revision = place.removeprefix(HUB).partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None))
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise WeightsError(
            f"{place} is not in the cache and cannot be downloaded ({type(error).__name__}). Where the hub "
            f"can be reached run `hf download {repository}`, and load the folder."
        ) from error
