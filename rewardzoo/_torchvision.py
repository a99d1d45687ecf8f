"""Make `import torchvision` work beside a CPU build of torch.

The torchvision on the package index is linked against CUDA. Beside a CPU torch its C++ library does not
load, and its Python then fails at import because two operators it annotates were never registered.
Declaring these two is enough for everything but calling them: transforms, models and every `transformers`
processor work. `install()` costs nothing (no import) and leaves a torchvision that imports alone.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[object] = []  # an operator lives as long as the library that defines it


class _RepairingLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._loader.exec_module(module)
            return
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
        import torch

        for name in [m for m in sys.modules if m.startswith("torchvision.")]:
            del sys.modules[name]
        for schema in _MISSING_OPERATORS:
            library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            library.define(schema)  # type: ignore[no-untyped-call]
            _libraries.append(library)
        sys.modules["torchvision"] = module
        self._loader.exec_module(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RepairingLoader(spec.loader)
        return spec


def install() -> None:
    """Repair torchvision on its first import, should it need that."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
