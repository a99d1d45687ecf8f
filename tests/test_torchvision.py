"""The repair of torchvision beside a CPU torch."""

import subprocess
import sys


def run(script: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_torchvision_imports_and_resizes_after_the_repair() -> None:
    script = (
        "import rewardzoo._torchvision as t; t.install(); import torch, torchvision.transforms as T;"
        "print(tuple(T.Resize(4)(torch.rand(3, 8, 8)).shape))"
    )
    assert run(script) == "(3, 4, 4)"


def test_the_repair_imports_nothing_by_itself() -> None:
    script = (
        "import sys, rewardzoo._torchvision as t; t.install(); t.install();"
        "print('torch' in sys.modules, sum(type(f).__module__ == t.__name__ for f in sys.meta_path))"
    )
    assert run(script) == "False 1"


def test_a_torchvision_that_works_is_left_alone(tmp_path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("works = True\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        "import rewardzoo._torchvision as t; t.install(); import torchvision;"
        "print(torchvision.works, 'torch' in sys.modules)"
    )
    assert run(script) == "True False"


def test_another_error_of_torchvision_is_not_swallowed(tmp_path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('something else')\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        "import rewardzoo._torchvision as t; t.install()\n"
        "try:\n    import torchvision\nexcept RuntimeError as e:\n    print(e)"
    )
    assert run(script) == "something else"
