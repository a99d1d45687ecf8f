"""Data sets by path or by name: which format, where its images are, and under which licence it stands."""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from rewardzoo.clients.compare import benchmarks, plain
from rewardzoo.clients.compare.building import build
from rewardzoo.clients.compare.groups import Group
from rewardzoo.clients.compare.rows import ENDINGS, files_in, image_columns, read_rows
from rewardzoo.clients.compare.store import ScoreStore
from rewardzoo.errors import require

HUB = "hf://"
UNKNOWN = "unknown"
_PLAIN, _POOL = "plain", "pool"


@dataclass(frozen=True)
class Format:
    """A format of data. `repository` on the Hugging Face hub holds the published data in `files`.

    `license` is what its card there says; a card that is read says it again.
    """

    read: Callable[[Path, Path], Iterator[Group]]
    columns: tuple[frozenset[str], ...]
    license: str = UNKNOWN
    repository: str = ""
    files: tuple[str, ...] = ()


FORMATS: Mapping[str, Format] = {
    "hpdv2": Format(
        benchmarks.hpdv2,
        (frozenset({"image_path", "rank", "raw_annotations"}),),
        "apache-2.0",
        "ymhao/HPDv2",
        ("test.json", "test.tar.gz"),
    ),
    "imagereward": Format(
        benchmarks.imagereward,
        (frozenset({"generations", "ranking"}), frozenset({"image_path", "rank", "prompt_id"})),
        "apache-2.0",
        "THUDM/ImageRewardDB",
        ("metadata-test.parquet", "images/test/**"),
    ),
    "pickapic": Format(
        benchmarks.pickapic,
        (frozenset({"jpg_0", "jpg_1", "label_0"}),),
        repository="yuvalkirstain/pickapic_v2",
        files=("data/test_unique-*", "data/validation_unique-*"),
    ),
    "genai-bench": Format(
        benchmarks.genai_bench,
        (frozenset({"Prompt", "HumanRatings"}),),
        "apache-2.0",
        "BaiqiL/GenAI-Bench",
        ("data/*.parquet",),
    ),
    "mj-bench": Format(
        benchmarks.mj_bench,
        (frozenset({"image0", "image1", "caption", "label"}),),
        repository="MJ-Bench/MJ-Bench",
        files=("**/*.parquet",),
    ),
    _PLAIN: Format(
        plain.pairs,
        (frozenset({"prompt", "chosen", "rejected"}), frozenset({"prompt", "image_a", "image_b", "label"})),
    ),
    _POOL: Format(plain.pool, (frozenset({"prompt", "image"}),)),
}


@dataclass(frozen=True)
class Data:
    """A data set that was found. `root` is what image references are relative to."""

    source: str
    benchmark: str
    path: Path
    root: Path
    license: str

    def groups(self) -> Iterator[Group]:
        """Read it, streamed."""
        return FORMATS[self.benchmark].read(self.path, self.root)

    def store(self, folder: Path, name: str | None = None) -> ScoreStore:
        """Open its store in the folder of a comparison, written first where there is none yet."""
        name = name or default_name(self.source)
        return build(
            folder / "data" / name,
            self.root,
            self.groups,
            name=name,
            benchmark=self.benchmark,
            source=self.source,
            license=self.license,
        )


@dataclass(frozen=True)
class Joined(Data):
    """Several data sets as one, by split; `join_pools` makes it."""

    pools: Mapping[str, Data]

    def groups(self) -> Iterator[Group]:
        """Read one after the other."""
        for split, data in self.pools.items():
            folder = os.path.relpath(data.root.absolute(), self.root)
            for group in data.groups():
                yield replace(
                    group,
                    prompt_id=f"{split}/{group.prompt_id}",
                    images=tuple(Path(folder, image).as_posix() for image in group.images),
                    split=split,
                )


def find_data(source: str, benchmark: str | None = None, images: Path | None = None) -> Data:
    """Find a data set: a path, a name of `FORMATS` that has a repository, or `hf://OWNER/NAME[@REVISION]`.

    The format is told from the columns where `benchmark` does not name it. `images` is the folder of
    images where these are not beside the table.

    Raises:
        ValueError: nothing is there, the hub cannot be reached, or the format is none of `FORMATS`.
        MissingExtraError: it is on the hub and `huggingface_hub` is not installed.
    """
    if benchmark and benchmark not in FORMATS:
        raise ValueError(f"benchmark must be one of {', '.join(FORMATS)}; got {benchmark!r}")
    path = Path(source)
    known = FORMATS.get(source)
    if not path.exists() and known and known.repository:
        benchmark = benchmark or source
        source, path = _fetch(known.repository, "", known.files)
    elif source.startswith(HUB):
        repository, _, revision = source.removeprefix(HUB).partition("@")
        benchmark = benchmark or _named(repository)
        source, path = _fetch(repository, revision, FORMATS[benchmark].files if benchmark else ())
    elif not path.exists():
        named = ", ".join(name for name, form in FORMATS.items() if form.repository)
        raise ValueError(f"nothing at {source}: give a path, hf://OWNER/NAME, or one of {named}")
    benchmark = benchmark or guess_format(path)
    root = images or (path if path.is_dir() else path.parent)
    return Data(source, benchmark, path, root, license_beside(path) or FORMATS[benchmark].license)


def join_pools(pools: Mapping[str, Data]) -> Data:
    """Make one data set of several, by split; prompts of different splits stay different prompts."""
    roots = [str(data.root.absolute()) for data in pools.values()]
    root = Path(os.path.commonpath(roots))
    return Joined(
        source=", ".join(f"{split}={data.source}" for split, data in pools.items()),
        benchmark=_POOL,
        path=root,
        root=root,
        license=", ".join(dict.fromkeys(data.license for data in pools.values())),
        pools=pools,
    )


def guess_format(path: Path) -> str:
    """Tell a format from the columns of its first row, or the files of its folder.

    Raises:
        ValueError: it is none of `FORMATS`.
    """
    if path.is_dir():
        if (path / "genai_image.json").is_file():
            return "genai-bench"
        if (path / "samples").is_dir() or next(path.glob("*/metadata.jsonl"), None):
            return _POOL
    named = [path / name for name in ("test.json", "metadata-test.parquet") if (path / name).is_file()]
    file = named[0] if named else files_in(path)[0]
    columns = {str(key) for row in islice(read_rows(file), 1) for key in row}
    columns |= set(image_columns(file)) if file.suffix == ".parquet" else set()
    for name, form in FORMATS.items():
        if any(wanted <= columns for wanted in form.columns):
            return name
    raise ValueError(
        f"{file} has the columns {', '.join(sorted(columns)) or '(none)'}, which is no format known here: "
        f"name it with --benchmark ({', '.join(FORMATS)}), or write prompt, chosen, rejected"
    )


def license_beside(path: Path) -> str:
    """Return the licence that the card beside a table or one folder up names; "" if none does."""
    folder = path if path.is_dir() else path.parent
    for card in (folder / "README.md", folder.parent / "README.md"):
        if card.is_file():
            head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
            if head and (found := re.search(r"^license:\s*(\S+)\s*$", head[1], re.MULTILINE)):
                return found[1]
    return ""


def default_name(source: str) -> str:
    """Make a name for files from where the data is."""
    last = Path(source.partition("@")[0]) if source.startswith(HUB) else Path(source).absolute()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last.stem if last.suffix in ENDINGS else last.name)


def _named(repository: str) -> str | None:
    return next((n for n, form in FORMATS.items() if form.repository == repository), None)


def _fetch(repository: str, revision: str, files: tuple[str, ...]) -> tuple[str, Path]:
    """Return where a data set is, with the commit, and a copy of it on this machine."""
    require("huggingface_hub", extra="compare")
    from huggingface_hub import errors, snapshot_download

    wanted = [*files, "README.md"] if files else None
    try:
        found = snapshot_download(
            repository, repo_type="dataset", revision=revision or None, allow_patterns=wanted
        )
    except (errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"{HUB}{repository} cannot be fetched: {error}. Where the hub can be reached, and its terms are "
            f"accepted if it is gated, run `hf download --repo-type dataset {repository}`, or give a path"
        ) from error
    folder = Path(found)
    for archive in folder.glob("*.tar.gz"):
        if not (folder / archive.name.removesuffix(".tar.gz")).is_dir():
            _unpack(archive, folder)
    return f"{HUB}{repository}@{folder.name}", folder


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive so that what is in it is there whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh, tarfile.open(archive) as members:
        members.extractall(fresh, filter="data")
        for path in Path(fresh).iterdir():
            if not (folder / path.name).exists():
                path.rename(folder / path.name)
