"""deploy/Dockerfile, without Docker: what it says, and its steps carried out in a folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewardzoo import LocalRewards, RewardClient

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
UID = 10001
# Set, every package is installed anew, as Docker would do it; else those of the tests' environment count as
# installed already, and the same commands take seconds.
WHOLE = "REWARDZOO_TEST_WHOLE_IMAGE" in os.environ


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, `FROM` first."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    found: list[list[tuple[str, str]]] = []
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest.strip()))
    return found


def last(stage: list[tuple[str, str]], word: str) -> str:
    return [rest for w, rest in stage if w == word][-1]


def test_hadolint_finds_nothing() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [linter, "--failure-threshold", "style", DOCKERFILE], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_what_is_copied_is_there_and_sent_to_the_build() -> None:
    ignored = [
        line
        for line in (ROOT / "deploy/Dockerfile.dockerignore").read_text().split("\n")
        if line[:1] not in "#"
    ]
    sent = {line[1:] for line in ignored if line.startswith("!")}
    build = stages()[0]
    copied = {source for word, rest in build if word == "COPY" for source in rest.split()[:-1]}
    assert copied == sent, "the build sees what it copies and nothing else"
    assert all((ROOT / source).exists() for source in copied)
    # Nothing of the package may be missing: setuptools would leave it out without a word.
    assert {link.name for link in (ROOT / "rewardzoo").iterdir() if link.is_symlink()} <= copied
    assert not any(fnmatch("minis", pattern) for pattern in ignored[1:])


def test_the_server_runs_without_privileges_and_gets_its_signals() -> None:
    final = stages()[-1]
    assert last(final, "USER") == f"{UID}:{UID}"
    assert json.loads(last(final, "ENTRYPOINT"))[:4] == ["tini", "--", "rewardzoo", "serve"]
    assert json.loads(last(final, "HEALTHCHECK").partition("CMD ")[2])[0] == "python", "slim has no curl"


@dataclass
class Folder:
    """Stands for the image's file system."""

    path: Path
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = "/"

    def inside(self, text: str) -> str:
        """`text` with the image's paths in this folder."""
        return re.sub(r"(?<![\w.:/])/(?=(?:opt|src|tmp|var)\b)", f"{self.path}/", text)

    def sh(self, command: str) -> None:
        subprocess.run(
            ["sh", "-ec", self.inside(command)], cwd=self.inside(self.cwd), env=self.env, check=True
        )

    def carry_out(self, stage: list[tuple[str, str]], arguments: dict[str, str]) -> None:
        """Do what the stage says; the apt packages and users of the last one are left to Docker."""
        for word, rest in stage:
            if word == "ENV":
                for pair in shlex.split(rest):
                    name, _, value = pair.partition("=")
                    self.env[name] = re.sub(r"\$(\w+)", lambda m: self.env[m[1]], self.inside(value))
            elif word == "ARG":
                name, _, value = rest.partition("=")
                self.env[name] = arguments.get(name, value)
            elif word == "WORKDIR":
                self.cwd = rest
                Path(self.inside(rest)).mkdir(parents=True, exist_ok=True)
            elif word == "COPY" and not rest.startswith("--from"):
                for source in rest.split()[:-1]:
                    self._copy(ROOT / source, Path(self.inside(self.cwd)) / source)
            elif word == "RUN" and "apt-get" not in rest:
                self.sh(rest)
                if "-m venv" in rest and not WHOLE:
                    (site,) = self.path.glob("opt/*/lib/python*/site-packages")
                    (site / "tests.pth").write_text(sysconfig.get_path("purelib"))

    def _copy(self, source: Path, to: Path) -> None:
        if source.is_file():
            shutil.copy2(source, to)
        else:
            shutil.copytree(source, to, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))


def python_for(user: dict[str, Any]) -> str:
    """An interpreter that the user may run: root's own may lie where nobody else looks."""
    for path in (sys.executable, "/usr/bin/python3"):
        code = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
        with suppress(OSError):
            if subprocess.run([path, "-c", code], cwd="/", capture_output=True, **user).returncode == 0:
                return path
    pytest.skip("no Python 3.11 with venv that another user may run")


@pytest.fixture
def user() -> dict[str, Any]:
    """The image's user, where the tests may become another."""
    return {"user": UID, "group": UID, "extra_groups": []} if os.getuid() == 0 else {}


@pytest.fixture
def folder(user: dict[str, Any]) -> Iterator[Folder]:
    # Not under tmp_path, which no other user may enter.
    path = Path(tempfile.mkdtemp(prefix="rewardzoo-image-"))
    path.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
    for name in ("opt", "bin"):
        (path / name).mkdir()
    (path / "bin" / "python").symlink_to(python_for(user))
    yield Folder(path, {**environment, "PATH": f"{path / 'bin'}:/usr/bin:/bin", "LANG": "C.UTF-8"})
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.slow
def test_the_steps_of_the_dockerfile_give_a_server_that_scores_and_stops(
    folder: Folder, user, free_port, start, wait_ready, pairs
) -> None:
    # This index has the torch that the tests run with; PyTorch's own has one for each CUDA.
    arguments = {"TORCH_INDEX": "https://pypi.org/simple"}
    build, final = stages()
    folder.carry_out(build, arguments)
    shutil.rmtree(folder.inside("/src"))
    folder.carry_out(final, arguments)
    for path in (folder.env["HF_HOME"], folder.inside("/tmp")):
        Path(path).mkdir(parents=True, exist_ok=True)
        if user:
            os.chown(path, UID, UID)

    port = free_port()
    command = [*json.loads(last(final, "ENTRYPOINT"))[2:], *json.loads(last(final, "CMD"))]
    command[0] = shutil.which(command[0], path=folder.env["PATH"]) or command[0]
    assert command[0].startswith(str(folder.path))
    cwd = Path(folder.inside(folder.cwd))
    health = json.loads(last(final, "HEALTHCHECK").partition("CMD ")[2])
    health = [part.replace(":3000/", f":{port}/") for part in health]

    def healthy() -> bool:
        done = subprocess.run(health, env=folder.env, cwd=cwd, capture_output=True, **user)
        return done.returncode == 0

    assert not healthy(), "nothing runs yet"
    # As arguments after the image's name: they come last and win.
    command += ["--host", "127.0.0.1", "--port", str(port)]
    server = start(command, folder.env, cwd=cwd, inherit=False, **user)
    url = f"http://127.0.0.1:{port}"
    wait_ready(url, server)
    assert healthy()
    images, prompts = pairs
    with RewardClient(url) as client:
        served = client.score(images, prompts, reward="hpsv2:mini")
    local = LocalRewards(["hpsv2:mini"], device="cpu").score(images, prompts)
    np.testing.assert_allclose(served, local, atol=1e-5)
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(timeout=20) == 0, server.log.read_text()
