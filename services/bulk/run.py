"""One run of bulk scoring: what it is told, and how it goes on after a kill.

The input is cut into chunks. A chunk is read, scored and written by one actor; it is done when its part is
in the output folder under its name, and from then on nobody scores it again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from rewardzoo.errors import RewardZooError
from rewardzoo.rewards import identify
from rewardzoo.services.bulk.actor import Job
from rewardzoo.services.bulk.checkpoint import Done, Output, check_same
from rewardzoo.services.bulk.plan import make_plan
from rewardzoo.services.bulk.rows import Columns

CHUNK_ROWS = 512
_DEVICES = ("auto", "cpu", "cuda")
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class BulkConfig:
    """What a bulk run is told.

    `inputs` are files, folders and globs; `weights` maps a name of `rewards` to a file to use instead of the
    published one. None means: `chunk_rows` those of the run that goes on, else 512; `batch_size` what each
    reward's spec has; `actors` one a GPU or, without GPUs, one a CPU up to 8; `address` this machine alone.
    """

    inputs: Sequence[str | Path]
    rewards: Sequence[str]
    out: Path
    device: str = "auto"
    weights: Mapping[str, Path] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    chunk_rows: int | None = None
    batch_size: int | None = None
    actors: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("no rewards given: name at least one, e.g. hpsv2:mini")
        if strange := sorted(set(self.weights) - set(self.rewards)):
            raise ValueError(f"weights are given for {strange}, which are not among {list(self.rewards)}")
        if self.device not in _DEVICES:
            raise ValueError(
                f"device must be one of {', '.join(_DEVICES)}, got {self.device!r}: Ray gives each actor its "
                "GPU, and CUDA_VISIBLE_DEVICES says which there are"
            )
        for name in ("chunk_rows", "batch_size", "actors"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is a file: --out is a folder")
        for given in map(Path, self.inputs):
            if given.is_dir() and self.out.resolve().is_relative_to(given.resolve()):
                raise ValueError(f"{self.out} is inside the input {given}, and would be read the next time")


@dataclass(frozen=True, slots=True)
class Summary:
    """How it ended: `scored` of the `rows` in this run, in `seconds`; rows without a score, by reward."""

    rows: int
    scored: int
    failed: Mapping[str, int]
    seconds: float

    @property
    def rate(self) -> float:
        """Images a second of this run, the start of Ray and the loading of weights included."""
        return self.scored / self.seconds if self.seconds else 0.0


class BulkRun:
    """One run, to be used in a `with` block: nothing else writes to its folder meanwhile.

    Raises:
        ValueError: the input cannot be read, or the folder holds scores of something else.
        UnknownRewardError, WeightsError: a reward cannot be had.
    """

    def __init__(self, config: BulkConfig) -> None:
        self._config = config
        self._output = Output(config.out.expanduser().absolute())
        self._closing = ExitStack()
        self._scored = 0
        self._seconds = 0.0

    def __enter__(self) -> Self:
        with self._closing as stack:
            stack.enter_context(self._output.locked())
            self._begin()
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _begin(self) -> None:
        config = self._config
        identities = {}
        self._weights: dict[str, Path] = {}
        for given in config.rewards:
            weights = config.weights.get(given)
            identity = identify(given, weights)
            name = f"{identity['reward']}:{identity['variant']}"
            identities[name] = identity
            if weights is not None:
                self._weights[name] = weights.expanduser().absolute()
        begun = self._output.manifest()
        chunk_rows = config.chunk_rows or (begun or {}).get("chunk_rows") or CHUNK_ROWS
        self._plan = make_plan(config.inputs, config.columns, chunk_rows)
        manifest = {
            "rewards": identities,
            "files": [asdict(file) for file in self._plan.files],
            "columns": asdict(config.columns),
            "chunk_rows": chunk_rows,
        }
        if begun is None:
            self._output.begin(manifest)
        else:
            check_same(self._output.folder, begun, manifest)
        self._manifest = self._output.manifest() or {}
        self._done = self._output.all_done()

    @property
    def rows(self) -> int:
        """Rows of the whole input."""
        return self._plan.rows

    @property
    def rows_done(self) -> int:
        """Rows whose scores are in the output."""
        return sum(done.rows for done in self._done.values())

    @property
    def finished(self) -> bool:
        """Whether all are."""
        return len(self._done) == len(self._plan.chunks)

    def score(self) -> Iterator[int]:
        """Score what is left; yield the number of rows of each chunk that is done.

        Raises:
            RewardZooError: it cannot go on. What is done stays done.
            ValueError: there is no cluster at the address, or not enough of one.
        """
        if self.finished:
            return
        # Here, so that an input or a reward that cannot be used is told without Ray's seconds.
        from rewardzoo.services.bulk.cluster import cluster, score_chunks, share_out

        config = self._config
        left = [chunk for chunk in self._plan.chunks if chunk.index not in self._done]
        started = time.monotonic()
        with cluster(config.address, config.actors):
            shares = share_out(config.device, config.actors, most=len(left))
            for told in score_chunks(self._job(shares.cpus), left, shares):
                if told["error"]:
                    raise RewardZooError(f"{told['error']}. What was done is kept: start again to go on")
                done = self._output.read_done(told["chunk"])
                if done is None:
                    raise RewardZooError(
                        f"{self._output.part(told['chunk'])} was written and is not to be seen here: the "
                        "output must be on storage that all machines share"
                    )
                self._done[done.chunk] = done
                self._scored += done.rows
                self._seconds = time.monotonic() - started
                yield done.rows

    def summary(self) -> Summary:
        """Say how far it is."""
        failed: Counter[str] = Counter(dict.fromkeys(self._manifest["rewards"], 0))
        for done in self._done.values():
            failed.update(done.failed)
        return Summary(self.rows, self._scored, dict(failed), self._seconds)

    def _job(self, cpus: int) -> Job:
        config = self._config
        dtypes: dict[str, Any] = {}
        if some := next(iter(self._done.values()), None):
            dtypes = {name: told["dtype"] for name, told in some.provenance.items()}
        return Job(
            root=self._plan.root,
            folder=self._output.folder,
            columns=config.columns,
            rewards=list(self._manifest["rewards"]),
            weights=self._weights,
            device=config.device,
            batch_size=config.batch_size,
            threads=min(cpus, _MAX_THREADS),
            manifest=self._manifest,
            dtypes=dtypes,
        )


__all__ = ["CHUNK_ROWS", "BulkConfig", "BulkRun", "Columns", "Done", "Summary"]
