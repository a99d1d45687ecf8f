"""deploy/rewardzoo@.service, as systemd reads it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "rewardzoo@.service"
PROGRAM = "/opt/rewardzoo/bin/rewardzoo"


def verify(folder: Path, text: str) -> str:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    assert text.count(PROGRAM) == 1
    # systemd asks that the program exists, which is not what is in question here.
    unit = folder / UNIT.name
    unit.write_text(text.replace(PROGRAM, sys.executable))
    return subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True).stderr


def test_the_unit_is_valid(tmp_path: Path) -> None:
    assert verify(tmp_path, UNIT.read_text()) == ""


def test_a_setting_that_systemd_does_not_know_is_found(tmp_path: Path) -> None:
    assert "ProtectSystems" in verify(tmp_path, UNIT.read_text().replace("ProtectSystem=", "ProtectSystems="))
