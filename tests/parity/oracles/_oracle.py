"""What oracle scripts share: reading pairs, drawing weights, writing a case. Imports nothing of rewardzoo."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

PARITY = Path(__file__).resolve().parent.parent
INPUTS = PARITY / "inputs"
_KEPT: list[Any] = []


def read_pairs() -> list[dict[str, Any]]:
    """Return the rows of inputs/pairs.json."""
    rows: list[dict[str, Any]] = json.loads((INPUTS / "pairs.json").read_text(encoding="utf-8"))
    return rows


def group_of_eight() -> list[dict[str, Any]]:
    """Return eight pictures with one prompt, as a GRPO group has them."""
    names = ("square", "odd", "panorama", "large", "portrait", "stripes", "photo.jpg", "photo.webp")
    images = [name if "." in name else f"{name}.png" for name in names]
    return [{"image": image, "prompt": read_pairs()[0]["prompt"]} for image in images]


def mend_torchvision() -> None:
    """Let torchvision from PyPI be imported beside a CPU build of torch: it asks for two CUDA operators."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # its operators go with it


def randomize(named: Iterable[tuple[str, Any]], seed: int, spread: Callable[[str, Any], float]) -> None:
    """Draw every weight anew: `spread(name, weight)` is its standard deviation.

    Scales of norms lie around 1, all others around 0, so that no weight is a neutral element. Weights are
    drawn in the order of their names.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(named):
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
            is_scale = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(1 + 0.2 * noise if is_scale else spread(name, weight) * noise)


def environment(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of `packages`."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@contextmanager
def measured(case: dict[str, Any]) -> Any:
    """Add the seconds that the block took, by the clock and of CPU, and this process's peak memory in GiB."""
    started, worked = time.perf_counter(), time.process_time()
    yield
    case["seconds"] = round(time.perf_counter() - started, 2)
    case["cpu_seconds"] = round(time.process_time() - worked, 2)
    case["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def write_case(folder: Path, case: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> None:
    """Write case.json, one pair a line."""
    folder.mkdir(parents=True, exist_ok=True)
    head = json.dumps({**case, "pairs": []}, indent=1, ensure_ascii=False)
    rows = ",\n  ".join(json.dumps(pair, ensure_ascii=False) for pair in pairs)
    text = head.removesuffix("[]\n}") + "[\n  " + rows + "\n ]\n}\n"
    (folder / "case.json").write_text(text, encoding="utf-8")
    scores = [pair["score"] for pair in pairs if pair.get("score") is not None]
    print(f"{folder}: {len(pairs)} pairs, scores from {min(scores):.4f} to {max(scores):.4f}")
