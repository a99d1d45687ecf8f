import subprocess
import sys

HEAVY = (
    "torch",
    "torchvision",
    "transformers",
    "bentoml",
    "scipy",
    "huggingface_hub",
    "tritonclient",
)


def test_the_client_brings_in_nothing_heavy() -> None:
    code = (
        "import sys, rewardzoo; from rewardzoo import RewardClient, ItemError\n"
        "import rewardzoo.clients, rewardzoo.local\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_comparison_brings_in_what_it_needs_only_when_it_runs() -> None:
    code = (
        "import sys, rewardzoo.cli, rewardzoo.clients.compare.preference as _\n"
        "import rewardzoo.clients.compare.best_of_n, rewardzoo.clients.compare.agreement\n"
        f"print([m for m in ({HEAVY!r} + ('pyarrow',)) if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_itself_does_not_even_bring_in_numpy() -> None:
    code = "import sys, rewardzoo; print('numpy' in sys.modules, 'httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
