"""Every code block of the README and of docs/, run as it stands (with a free port in place of 3000)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rewardzoo import RewardClient

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
]
SERVE = next(code for kind, code in BLOCKS if code.startswith("rewardzoo serve"))
BIN = Path(sys.executable).parent


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "VENV": sys.prefix,
        # Tests inside the tests are only collected.
        "PYTEST_ADDOPTS": "--collect-only -q -p no:cacheprovider",
    }


@pytest.fixture(scope="module")
def port(free_port: Callable[[], int]) -> Iterator[int]:
    port = free_port()
    server = subprocess.Popen(
        ["bash", "-ec", f"exec {SERVE.replace('3000', str(port))}"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with RewardClient(f"http://127.0.0.1:{port}") as client:
            client.wait_ready(120)
        yield port
    finally:
        server.terminate()
        server.wait()


def test_the_readme_begins_with_the_two_commands_and_has_both_kinds_of_block() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}
    assert [code for _, code in BLOCKS[:2]] == ["make demo\n", "make test\n"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [block for block in BLOCKS if block[1] != SERVE],
    ids=[code.splitlines()[0][:40] for _, code in BLOCKS if code != SERVE],
)
def test_a_block_runs_as_it_stands(kind: str, code: str, port: int, tmp_path: Path) -> None:
    code = code.replace("3000", str(port))
    code = code.replace("pip install", "pip install --dry-run")  # resolves, and leaves this environment be
    in_checkout = code.startswith(("make", "python -m pip"))
    command = ["bash", "-euo", "pipefail", "-c", code] if kind == "bash" else [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        env=environment(),
        cwd=ROOT if in_checkout else tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
