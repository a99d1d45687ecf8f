"""Ray: a cluster of this machine or one by its address, and the chunks through a pool of actors."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rewardzoo.errors import UnavailableError
from rewardzoo.services.bulk.actor import ChunkScorer, Job
from rewardzoo.services.bulk.plan import Chunk

MAX_ACTORS_ON_CPU = 8
_MAX_BLOCKS = 2000
_CONNECT_SECONDS = 10
_OBJECT_STORE = 100 * 2**20  # images never pass through it, chunks' places do


@dataclass(frozen=True, slots=True)
class Shares:
    """How many actors, and what each of them has."""

    actors: int
    cpus: int
    gpus: float


@contextlib.contextmanager
def cluster(address: str | None, actors: int | None) -> Iterator[None]:
    """Connect to the cluster at `address`; without one, run Ray in this machine, reached by nobody else.

    In a process that is connected already that connection is used, and left as it is.

    Raises:
        ValueError: there is no cluster at `address`.
    """
    if address is not None:
        _check_answers(address)
    _set_environment(address)
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with _no_stderr():
            if address is None:
                _start_local(actors, quiet)
            else:
                try:
                    ray.init(address=address, **quiet)
                except ConnectionError as error:
                    raise ValueError(f"no Ray cluster at {address!r}: {error}") from error
        yield
    finally:
        ray.shutdown()


def share_out(device: str, actors: int | None, *, most: int) -> Shares:
    """Divide the cluster between the actors, `most` at most: on GPUs one each by default, else on CPUs.

    Raises:
        ValueError: the cluster has not enough for them.
    """
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return divide(
        [int(node.get("CPU", 0)) for node in alive],
        [int(node.get("GPU", 0)) for node in alive],
        device=device,
        actors=actors,
        most=most,
    )


def divide(cpus: Sequence[int], gpus: Sequence[int], *, device: str, actors: int | None, most: int) -> Shares:
    """Divide machines with so many CPUs and GPUs each between `actors`; as `share_out`."""
    on_gpu = device != "cpu" and sum(gpus) > 0
    if device == "cuda" and not on_gpu:
        raise ValueError("device 'cuda' was asked for, and the cluster has no GPU: use --device cpu")
    if actors is None:
        actors = sum(gpus) if on_gpu else min(sum(cpus), MAX_ACTORS_ON_CPU)
    actors = min(actors, most)
    # The largest share of which each machine, by itself, holds enough.
    cpu_share = max((n for n in range(1, max(cpus) + 1) if sum(c // n for c in cpus) >= actors), default=0)
    if not cpu_share:
        raise ValueError(f"{actors} actors need a CPU each, and the cluster has {sum(cpus)}: give --actors")
    on_one_gpu = -(-actors // sum(gpus)) if on_gpu else 0
    return Shares(actors, cpu_share, 1 / on_one_gpu if on_one_gpu else 0)


def score_chunks(job: Job, chunks: Sequence[Chunk], shares: Shares) -> Iterator[dict[str, Any]]:
    """Score chunks as Ray Data does it, and give what `ChunkScorer` told of each, as they end."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # A block a chunk, so that no actor waits while another has chunks left, and progress is seen.
    blocks = min(len(chunks), _MAX_BLOCKS)
    told = ray.data.from_items([asdict(chunk) for chunk in chunks], override_num_blocks=blocks).map_batches(
        ChunkScorer,
        fn_constructor_args=(job,),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=shares.actors, max_tasks_in_flight_per_actor=2),
        num_cpus=shares.cpus,
        num_gpus=shares.gpus,
    )
    try:
        block: Any
        for block in told.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from block.to_pylist()
    except ray.exceptions.RayError as error:
        raise UnavailableError(f"Ray gave up ({error}). What was done is kept: start again") from error


def _start_local(actors: int | None, quiet: dict[str, Any]) -> None:
    import ray
    from ray._private import ray_constants

    # Only so do Ray's servers bind 127.0.0.1: asked for that address, `init` takes the network's instead.
    ray_constants.ENABLE_RAY_CLUSTER = False
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ray.init(
        address="local",
        num_cpus=max(cpus, actors or 1),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE,
        **quiet,
    )
    bound = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    if bound != "127.0.0.1":
        raise UnavailableError(
            f"this version of Ray would listen on {bound}, beyond this machine: use ray 2.60"
        )


def _check_answers(address: str) -> None:
    """Refuse an address where nobody listens: Ray would try for minutes, without a word."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not port.isdecimal() or "/" in host:
        raise ValueError(f"a Ray address is auto or HOST:PORT (of the head, often 6379), got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"no Ray cluster at {address!r}: {error}") from error


def _set_environment(address: str | None) -> None:
    """Set what Ray reads from the environment when it is imported; in a process that has it, too late."""
    warnings.filterwarnings("ignore", module=r"ray\.")
    if "ray" in sys.modules:
        return
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_enable_metrics_collection": "0",
        "AUTOSCALER_METRIC_PORT": "0",
    }
    if address is None:
        # Other users of the machine reach 127.0.0.1 as well: a token of this run's own, in no file.
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # Ray would run the actors at `nice 15`; whoever wants that says so to the whole command.
        settings["RAY_worker_niceness"] = "0"
    for name, value in settings.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Drop what Ray's C++ side says on starting; its errors come as exceptions."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
