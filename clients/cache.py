"""Scores that are known already: a table on disk that processes share, and a transport that asks it first.

An item's key is a hash of its pixels (or its file), its prompt and metadata, and of what the score rests on.
So a server with other weights, another recipe or dtype never gets an old score as its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from rewardzoo.clients.process import PerProcess
from rewardzoo.clients.transport import Part, Reply, Transport

logger = logging.getLogger(__name__)
_BUSY_TIMEOUT = 10.0
# When a score was used last is written down no finer than this, in seconds, so that most hits only read.
_GRAIN = 60.0
# A full table is emptied by this much at once, of what was used longest ago.
_EVICTED = 0.1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS scores (
    key BLOB PRIMARY KEY, value TEXT NOT NULL, used REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON scores (used);
"""


@dataclass(frozen=True)
class CacheInfo:
    """How often a score was known, in this process, and how much is stored, by all."""

    hits: int
    misses: int
    items: int
    bytes: int

    @property
    def hit_rate(self) -> float:
        """Hits among all look-ups; 0 before the first."""
        return self.hits / (self.hits + self.misses or 1)


class ScoreCache:
    """Scores and details in a SQLite file, which any number of threads and processes may use at a time.

    It holds at most about `max_bytes`; what was used longest ago goes first. `refresh` is after how many
    seconds a server is asked anew what its scores rest on. Put it on a local disk: SQLite's write-ahead log
    does not work over a network. A file that cannot be read or written is logged, and then nothing is
    known: it never costs a score.
    """

    def __init__(self, path: str | Path, *, max_bytes: int = 2**30, refresh: float = 60.0) -> None:
        if max_bytes < 2**20 or not refresh > 0:
            raise ValueError(f"max_bytes must be >= {2**20} and refresh > 0, got {max_bytes} and {refresh}")
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.refresh = refresh
        self._table = PerProcess(lambda: _Table(self.path, self.max_bytes))

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.path, self.max_bytes, self.refresh)

    def info(self) -> CacheInfo:
        """Say how often a score was known."""
        return self._table().info()

    def clear(self) -> None:
        """Forget all scores."""
        self._table().clear()

    def close(self) -> None:
        """Close this process's connection; the next use opens another."""
        if table := self._table.made():
            table.close()

    def get(self, keys: Sequence[bytes]) -> list[tuple[float, Mapping[str, Any]] | None]:
        """Return score and details of each key, None where they are not known."""
        try:
            return self._table().get(keys)
        except (sqlite3.Error, OSError) as error:
            logger.warning("the score cache %s cannot be read: %s", self.path, error)
            return [None] * len(keys)

    def put(self, found: Mapping[bytes, tuple[float, Mapping[str, Any]]]) -> None:
        """Keep scores and details."""
        try:
            self._table().put(found)
        except (sqlite3.Error, OSError) as error:
            logger.warning("the score cache %s cannot be written: %s", self.path, error)


def _remake(path: Path, max_bytes: int, refresh: float) -> ScoreCache:
    return ScoreCache(path, max_bytes=max_bytes, refresh=refresh)


class _Table:
    """The connection of one process."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._hits = self._misses = 0

    def get(self, keys: Sequence[bytes]) -> list[tuple[float, Mapping[str, Any]] | None]:
        with self._lock, self._open() as db:
            ask = "SELECT value, used FROM scores WHERE key = ?"
            rows = [db.execute(ask, (key,)).fetchone() for key in keys]
            now = time.time()
            old = [(now, key) for key, row in zip(keys, rows, strict=True) if row and row[1] < now - _GRAIN]
            if old:
                db.executemany("UPDATE scores SET used = ? WHERE key = ?", old)
        hits = sum(row is not None for row in rows)
        self._hits += hits
        self._misses += len(rows) - hits
        return [None if row is None else tuple(json.loads(row[0])) for row in rows]

    def put(self, found: Mapping[bytes, tuple[float, Mapping[str, Any]]]) -> None:
        if not found:
            return
        now = time.time()
        rows = [(key, json.dumps(value, separators=(",", ":")), now) for key, value in found.items()]
        with self._lock, self._open() as db:
            db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)
            if self._bytes(db) > self._max_bytes:
                (count,) = db.execute("SELECT count(*) FROM scores").fetchone()
                oldest = "SELECT key FROM scores ORDER BY used LIMIT ?"
                db.execute(f"DELETE FROM scores WHERE key IN ({oldest})", (math.ceil(_EVICTED * count),))

    def info(self) -> CacheInfo:
        with self._lock, self._open() as db:
            (count,) = db.execute("SELECT count(*) FROM scores").fetchone()
            return CacheInfo(self._hits, self._misses, count, self._bytes(db))

    def clear(self) -> None:
        with self._lock, self._open() as db:
            db.execute("DELETE FROM scores")

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> sqlite3.Connection:
        """Return the connection, to be used in a `with`: a transaction."""
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    # SQLite does not wait where several processes switch a new file to its write-ahead log at a time.
    @retry(
        retry=retry_if_exception(lambda error: getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY),
        wait=wait_random(0.0, 0.05),
        stop=stop_after_delay(_BUSY_TIMEOUT),
        reraise=True,
    )
    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last scores, and no more
            db.executescript(_SCHEMA)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _bytes(self, db: sqlite3.Connection) -> int:
        names = ("page_count", "freelist_count", "page_size")
        pages, free, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        return int((pages - free) * size)


class CachedTransport(Transport):
    """Asks `cache` first, and `inner` for what is not there. Errors are not kept.

    What a reward's scores rest on is learnt from its answers: the first item that is to be scored is always
    sent, and so is one whenever what is known is older than the cache's `refresh`.
    """

    def __init__(self, inner: Transport, cache: ScoreCache) -> None:
        self._inner = inner
        self._cache = cache
        self._known: dict[str, tuple[str, Mapping[str, Any], float]] = {}

    def infer(self, model: str, part: Part, *, deadline: float) -> Reply:
        """Score a part; see `Transport`."""
        return self.infer_all([model], part, deadline=deadline)[0]

    def infer_all(self, models: Sequence[str], part: Part, *, deadline: float) -> Sequence[Reply]:
        """Score a part with each of `models`; see `Transport`."""
        hashes = [_item_hash(part, i) for i in range(len(part))]
        answers = [_Answer(len(part)) for _ in models]
        places = list(range(len(part)))
        fresh = all(self._age(model) < self._cache.refresh for model in models)
        if not fresh:
            self._ask(models, part, places[:1], hashes, answers, deadline)
            places = places[1:]
        while True:
            used = [self._known[model] for model in models]
            missing = self._look_up(used, places, hashes, answers)
            if missing:
                self._ask(models, part, missing, hashes, answers, deadline)
            # A server that has changed meanwhile: what was looked up is another's.
            changed = [self._known[m][0] != known[0] for m, known in zip(models, used, strict=True)]
            places = [] if not any(changed) else [i for i in places if i not in missing]
            if not places:
                break
        return [answer.reply(self._known[model][1]) for model, answer in zip(models, answers, strict=True)]

    def close(self) -> None:
        """Close the connections and this process's hold of the cache."""
        self._inner.close()
        self._cache.close()

    def _age(self, model: str) -> float:
        return time.monotonic() - self._known[model][2] if model in self._known else math.inf

    def _look_up(
        self,
        used: Sequence[tuple[str, Mapping[str, Any], float]],
        places: Sequence[int],
        hashes: Sequence[bytes],
        answers: Sequence[_Answer],
    ) -> list[int]:
        """Fill in what is known; return the places that some reward has no score for."""
        missing: set[int] = set()
        for (rests_on, _, _), answer in zip(used, answers, strict=True):
            found = self._cache.get([_key(hashes[i], rests_on) for i in places])
            for i, value in zip(places, found, strict=True):
                if value is None:
                    missing.add(i)
                else:
                    answer.scores[i], answer.details[i] = value
        return sorted(missing)

    def _ask(
        self,
        models: Sequence[str],
        part: Part,
        places: Sequence[int],
        hashes: Sequence[bytes],
        answers: Sequence[_Answer],
        deadline: float,
    ) -> None:
        """Have the items at `places` scored, and keep what comes back."""
        whole = len(places) == len(part)
        replies = self._inner.infer_all(models, part if whole else part.take(places), deadline=deadline)
        kept: dict[bytes, tuple[float, Mapping[str, Any]]] = {}
        for model, answer, reply in zip(models, answers, replies, strict=True):
            rests_on = json.dumps([model, reply.provenance], sort_keys=True)
            self._known[model] = (rests_on, reply.provenance, time.monotonic())
            for at, i in enumerate(places):
                answer.scores[i], answer.details[i] = reply.scores[at], reply.details.get(at, {})
                if at in reply.errors:
                    answer.errors[i] = reply.errors[at]
                elif math.isfinite(reply.scores[at]):
                    kept[_key(hashes[i], rests_on)] = (float(reply.scores[at]), answer.details[i])
        self._cache.put(kept)


class _Answer:
    """What is known of a part, by place."""

    def __init__(self, count: int) -> None:
        self.scores = [math.nan] * count
        self.errors: dict[int, str] = {}
        self.details: dict[int, Mapping[str, Any]] = {}

    def reply(self, provenance: Mapping[str, Any]) -> Reply:
        return Reply(self.scores, self.errors, provenance, {i: d for i, d in self.details.items() if d})


def _item_hash(part: Part, at: int) -> bytes:
    payload, prompt = part.payloads[at], part.prompts[at]
    note = part.metadata[at] if part.metadata is not None else "{}"
    digest = hashlib.blake2b(digest_size=24)
    form = "file" if isinstance(payload, bytes) else str(payload.shape)
    about = json.dumps([form, prompt, json.loads(note)], sort_keys=True)
    digest.update(len(about).to_bytes(8, "little") + about.encode())
    digest.update(payload if isinstance(payload, bytes) else np.ascontiguousarray(payload).data)
    return digest.digest()


def _key(item: bytes, rests_on: str) -> bytes:
    return hashlib.blake2b(item + rests_on.encode(), digest_size=24).digest()
