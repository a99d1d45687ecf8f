"""A worker and BentoML's supervisor, which starts it and starts it anew when it has died."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

import bentoml

from rewardzoo.errors import UnavailableError

logger = logging.getLogger(__name__)

_FAREWELL = 1.0  # seconds that answers have to leave before the process ends
_GRACE = 30.0  # seconds that an orphan has to end in good order
_LOST = 70  # exit status, EX_SOFTWARE of sysexits.h


def is_supervised() -> bool:
    """Say whether this process is a worker of a supervisor."""
    return bentoml.server_context.worker_index is not None


def give_up(error: Exception) -> None:
    """End the whole server: the supervisor would start the failing worker for ever."""
    logger.critical("cannot serve: %s", error)
    if is_supervised():
        os.kill(os.getppid(), signal.SIGTERM)


def end_process(error: UnavailableError) -> None:
    """End this process, whose device is lost: its supervisor starts a new one.

    At once, after a moment for the answers: no handler could do anything in a broken CUDA context but hang.
    """
    if is_supervised():
        logger.critical("ends with status %d: %s", _LOST, error)
        # A thread of its own, in case that the event loop hangs.
        threading.Timer(_FAREWELL, os._exit, (_LOST,)).start()


def follow_supervisor(pause: float = 1.0) -> None:
    """End this process once its supervisor is gone.

    A worker has a session of its own, so one whose supervisor was killed would live on, with the port and
    the device's memory.
    """
    if is_supervised():
        threading.Thread(target=_follow, args=(os.getppid(), pause), name="supervisor", daemon=True).start()


def _follow(supervisor: int, pause: float) -> None:
    while os.getppid() == supervisor:
        time.sleep(pause)
    logger.critical("ends: its supervisor, process %d, is gone", supervisor)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(_LOST)
