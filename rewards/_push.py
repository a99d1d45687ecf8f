"""A trained variant into a hub repository, from where it is loaded as `orm:hf://owner/name@commit`."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from rewardzoo.errors import WeightsError
from rewardzoo.rewards import _weights
from rewardzoo.rewards._registry import resolve
from rewardzoo.rewards._spec import LocalPath
from rewardzoo.rewards._trained import HUB, MANIFEST

_BESIDE = ("README.md", "reliability.png", "metrics.json", "config.yaml")
"""What training writes about the weights."""


def push(name: str, repository: str, *, private: bool = False, branch: str | None = None) -> str:
    """Upload the variant `name`, `orm:path/to/run`, and return the name under which it is served from there.

    The repository, `owner/name`, and its `branch` are made where they are not there yet. Uploaded is the
    variant alone: manifest, weights, card and settings, not the training's checkpoints. The token is the hub
    client's own: `hf auth login`, or `HF_TOKEN`.

    Raises:
        ValueError: `name` is not that of a folder, or the repository's would be that of a released variant.
        WeightsError: the folder is no whole variant, or the hub does not take it.
    """
    model, variant = resolve(name)
    manifest = variant.files.get("manifest")
    if not isinstance(manifest, LocalPath) or name.partition(":")[2].startswith(HUB):
        raise ValueError(f"{name!r} is no folder of a trained variant, e.g. orm:runs/my-orm")
    released = [v.name for v in model.spec.variants]
    if repository.rpartition("/")[2] in released:
        raise ValueError(
            f"{repository!r} would be called as a released variant is ({', '.join(released)}): rename it"
        )
    folder = Path(manifest.path).parent
    files = [path for key, path in _weights.locate(variant).items() if key != "manifest"]
    places = [(path.relative_to(folder).as_posix(), path.is_dir()) for path in files]
    patterns = [MANIFEST, *_BESIDE, *(f"{place}/*" if is_dir else place for place, is_dir in places)]
    api = HfApi()
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)  # None is the owner's default
        if branch is not None:
            api.create_branch(repository, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=patterns,
            revision=branch,
            commit_message=f"{model.spec.name}:{folder.name}",
        )
    except Exception as error:  # of several trees: the hub's own, its HTTP client's, the system's
        raise WeightsError(
            f"{folder} cannot be pushed to {repository}: {error} (`hf auth login` stores a token)"
        ) from error
    return f"{model.spec.name}:{HUB}{repository}@{commit.oid}"
