"""Shared by all tests."""

import os

# One thread a process: tiny tensors gain nothing from more, and a busy machine stalls on their barriers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
