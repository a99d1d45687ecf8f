"""What runs in each Ray actor: the rewards, loaded once, and chunk after chunk through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow

from rewardzoo.clients import wire
from rewardzoo.errors import ItemError
from rewardzoo.services.bulk.checkpoint import Done, Output
from rewardzoo.services.bulk.plan import Chunk
from rewardzoo.services.bulk.rows import Columns
from rewardzoo.services.bulk.scoring import RowScorer, ScoredRow


@dataclass(frozen=True, slots=True)
class Job:
    """All that an actor is told. Paths are absolute, and mean the same on every machine.

    `manifest` is what the output folder's says; `dtypes` are those of the parts that are there already.
    """

    root: Path
    folder: Path
    columns: Columns
    rewards: Sequence[str]
    weights: Mapping[str, Path]
    device: str
    batch_size: int | None
    threads: int
    manifest: Mapping[str, Any]
    dtypes: Mapping[str, str]


class ChunkScorer:
    """Scores chunks and writes their parts. What goes wrong with a chunk is told, never raised."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._output = Output(job.folder)
        self._scorer: RowScorer | None = None

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """Take chunks as rows; for each, give its index, rows, and the error that stops the run, or ""."""
        told = [self._told(Chunk(**row)) for row in batch.to_pylist()]
        return pyarrow.Table.from_pylist(told)

    def _told(self, chunk: Chunk) -> dict[str, Any]:
        error = ""
        try:
            self.score(chunk)
        # Ray would wrap it in pages of its own, and give the chunk to the next actor.
        except Exception as problem:
            where = f"{chunk.file}, rows {chunk.start} to {chunk.stop - 1}"
            error = f"{where}: {type(problem).__name__}: {problem}"
        return {"chunk": chunk.index, "rows": len(chunk), "error": error}

    def score(self, chunk: Chunk) -> Done:
        """Score a chunk and write its part, unless the part is there: Ray repeats what a lost machine did.

        Raises:
            WeightsError, ValueError: the rewards cannot be loaded here, or are not those of the run.
            RuntimeError: those who scored this chunk before died of it.
        """
        if done := self._output.read_done(chunk.index):
            return done
        self._scorer = self._scorer or self._load()
        self._output.attempt(chunk.index)
        scored = list(self._scorer.score(chunk.read(self._job.root, self._job.columns)))
        if len(scored) != len(chunk):
            raise ValueError(f"there are {len(scored)} rows where {len(chunk)} were: the file has changed")
        models = self._scorer.models
        failed = {name: sum(isinstance(row.outcomes[name], ItemError) for row in scored) for name in models}
        provenance = {name: model.provenance() for name, model in models.items()}
        done = Done(chunk.index, len(scored), failed, provenance)
        self._output.write_part(done, as_columns(chunk.file, scored, list(models)))
        self._output.settle(chunk.index)
        return done

    def _load(self) -> RowScorer:
        from rewardzoo.rewards import load

        job = self._job
        try:
            found = self._output.manifest()
        except ValueError:
            found = None
        if found != job.manifest:
            raise ValueError(
                f"{job.folder} here is not the folder that the run was started with: input and output must "
                "be on storage that all machines share"
            )
        models = {n: load(n, device=job.device, weights=job.weights.get(n)) for n in job.rewards}
        for name, model in models.items():
            here, there = model.provenance(), job.manifest["rewards"][name]
            if here["weights_sha256"] != there["weights_sha256"]:
                raise ValueError(
                    f"the weights of {name} have SHA-256 {here['weights_sha256']} here, and "
                    f"{there['weights_sha256']} where the run was started: make them the same"
                )
            if here["dtype"] != job.dtypes.get(name, here["dtype"]):
                raise ValueError(
                    f"{job.folder} has scores of {name} in {job.dtypes[name]}, this device computes in "
                    f"{here['dtype']}: go on with the --device it was begun on, or choose another --out"
                )
        return RowScorer(models, batch_size=job.batch_size, threads=job.threads)


def as_columns(file: str, scored: Sequence[ScoredRow], rewards: Sequence[str]) -> dict[str, pyarrow.Array]:
    """Return the columns of a part: file, row, id, prompt, and NAME, NAME.error, NAME.details a reward."""
    rows = [row.row for row in scored]
    columns = {
        "file": pyarrow.array([file] * len(rows), pyarrow.string()),
        "row": pyarrow.array([row.number for row in rows], pyarrow.int64()),
        "id": pyarrow.array([_text(row.id) for row in rows], pyarrow.string()),
        "prompt": pyarrow.array([_text(row.prompt) for row in rows], pyarrow.string()),
    }
    for name in rewards:
        values: list[float | None] = []
        errors: list[str | None] = []
        details: list[str | None] = []
        for row in scored:
            outcome = row.outcomes[name]
            if isinstance(outcome, ItemError):
                values.append(None)
                errors.append(_text(str(outcome)))
                details.append(None)
            else:
                values.append(outcome.value)
                errors.append(None)
                details.append(wire.encode_object(outcome.details) or None)
        columns[name] = pyarrow.array(values, pyarrow.float32())
        columns[f"{name}.error"] = pyarrow.array(errors, pyarrow.string())
        columns[f"{name}.details"] = pyarrow.array(details, pyarrow.string())
    return columns


def _text(value: str | None) -> str | None:
    return None if value is None else value.encode(errors="replace").decode()
