"""SHA-256 of files and folders, kept under HF_HOME so that a big file is read once."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import constants


def home() -> Path:
    """Return rewardzoo's own folder in HF_HOME; it need not exist."""
    return Path(constants.HF_HOME) / "rewardzoo"


def sha256(path: Path, patterns: Sequence[str] | None = None) -> str:
    """Return a file's SHA-256, remembered by path, size and time so that a big file is read once.

    A folder's is that of the lines "NAME SHA256" of its files, sorted by name; `patterns` picks the files
    that count, as `files_in` does.
    """
    if path.is_dir():
        lines = [f"{name} {sha256(path / name)}" for name in files_in(path, patterns)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    path = path.resolve()
    stat = path.stat()
    key = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
    with ledger() as known:
        if key in known:
            return known[key]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with ledger() as known:
        known[key] = digest
    return digest


def files_in(folder: Path, patterns: Sequence[str] | None = None) -> list[str]:
    """Return the names, relative and sorted, of a folder's files that match a pattern; all without any.

    Patterns mean what they mean to the hub: `*.json` is in subfolders too.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return names if patterns is None else [name for name in names if matches(name, patterns)]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Say whether a name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@contextmanager
def ledger() -> Iterator[dict[str, str]]:
    """Open the record of hashes under HF_HOME; what is changed is written back; a lost write is harmless."""
    path = home() / "sha256.json"
    try:
        known: dict[str, str] = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    before = dict(known)
    yield known
    if known != before:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
            fresh.write_text(json.dumps(known, indent=1))
            fresh.replace(path)
        except OSError:
            return  # a read-only home: hash again next time
