"""Shared by all tests."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable

import pytest

# One thread a process: tiny tensors gain nothing from more, and a busy machine stalls on their barriers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A home of their own, before anything reads it: tests neither depend on the user's cache nor write to it.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="rewardzoo-tests-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Find a TCP port of 127.0.0.1 that nobody listens on."""
    from rewardzoo.services import launch

    return launch.free_port
