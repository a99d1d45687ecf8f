"""`rewardzoo doctor`: what is installed and what is not, and how to mend it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

_EXTRAS = {
    "serve": ("torch", "torchvision", "transformers", "open_clip_torch", "bentoml"),
    "train": ("accelerate", "peft"),
    "triton": ("tritonclient", "grpcio"),
    "parquet": ("pyarrow",),
    "compare": ("pyarrow", "scipy", "matplotlib", "jinja2"),
    "ui": ("gradio",),
    "bulk": ("ray", "aiohttp", "pyarrow"),
}


@dataclass(frozen=True)
class Check:
    """One finding: `ok` is None where it is a fact and no fault."""

    what: str
    found: str
    ok: bool | None = True
    fix: str = ""


def doctor(port: Annotated[int, typer.Option(help="Port that a server would use.")] = 3000) -> None:
    """Check packages, device, weights and port; every fault comes with its remedy."""
    checks = [*_packages(), *_device(), *_weights(), _port(port)]
    table = Table("", "what", "found", "to mend it")
    for check in checks:
        mark = {True: "[green]✓[/]", False: "[red]✗[/]", None: "·"}[check.ok]
        table.add_row(mark, check.what, check.found, check.fix)
    Console().print(table)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


def _packages() -> Iterator[Check]:
    yield Check("python", platform.python_version())
    yield Check("rewardzoo", version("rewardzoo"))
    for extra, packages in _EXTRAS.items():
        found = {package: _version(package) for package in packages}
        missing = [package for package, v in found.items() if v is None]
        shown = ", ".join(f"{package} {v}" for package, v in found.items() if v)
        if missing:
            yield Check(
                f"extra {extra}",
                shown or "not installed",
                None,
                f"pip install 'rewardzoo[{extra}]'",
            )
        else:
            yield Check(f"extra {extra}", shown)


def _device() -> Iterator[Check]:
    if _version("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(i).total_memory / 2**30
            yield Check(f"cuda:{i}", f"{torch.cuda.get_device_name(i)}, {memory:.0f} GiB")
    elif torch.version.cuda:
        yield Check(
            "device",
            "CPU; torch is a CUDA build but sees no GPU",
            None,
            "check nvidia-smi and the driver",
        )
    else:
        yield Check("device", f"CPU, {torch.get_num_threads()} threads", None)
    if _version("torchvision") is not None:
        import rewardzoo.rewards  # noqa: F401  # installs the repair of torchvision

        try:
            import torchvision
        except Exception as error:
            fix = f"install the torchvision made for torch {torch.__version__}"
            yield Check("import torchvision", str(error), False, fix)
        else:
            yield Check("import torchvision", str(torchvision.__version__))


def _weights() -> Iterator[Check]:
    if _version("torch") is None:
        return
    from huggingface_hub import constants

    from rewardzoo.rewards import is_on_disk, specs

    free = shutil.disk_usage(_existing(constants.HF_HUB_CACHE)).free / 2**30
    offline = "; HF_HUB_OFFLINE is set" if constants.is_offline_mode() else ""
    yield Check("hub cache", f"{constants.HF_HUB_CACHE}, {free:.0f} GiB free{offline}", None)
    for spec in specs():
        for variant in spec.variants:
            name = f"weights of {spec.name}:{variant.name}"
            if is_on_disk(variant):
                yield Check(name, "on disk")
            elif variant.is_mini:
                yield Check(name, "missing from the installation", False, "reinstall rewardzoo")
            else:
                yield Check(name, "not downloaded", None, "come with the first use, or --weights NAME=PATH")


def _port(port: int) -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check(
                f"port {port}",
                f"not free ({error.strerror})",
                False,
                "stop its owner, or use --port",
            )
    return Check(f"port {port}", "free")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _existing(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path
