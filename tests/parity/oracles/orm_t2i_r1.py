"""The ORM of T2I-R1 by its own `reward_orm.py` and its copy of LLaVA-NeXT.

    git clone https://github.com/CaraJ7/T2I-R1 && cd T2I-R1       (Apache-2.0)
    git checkout 2d9d4d1af4119953b3a8541f914f85481d7e1e76
    ENV/bin/python tests/parity/oracles/orm_t2i_r1.py --upstream CHECKOUT --out tests/parity/fixtures

ENV has requirements/llava-next.txt. Run `imagegen_cot.py` first: it writes the checkpoint. `_llava_next.py`
says what around upstream's code is ours; besides, `deepspeed`, of which upstream uses a context manager
that gathers a sharded weight, is a stub.

Upstream samples its answer at temperature 0.3. It runs here under one seed after the other until two answers
are sampled that it accepts: the number that it returns is the same whatever the seed. Where only "Yes" and
"No" can be sampled, it divides by zero, and the pair's error says so.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from _llava_next import (
    CONFIG,
    FOLDER,
    Watched,
    add_upstream,
    as_upstream_reads_it,
    rows,
    run_in_full_precision,
    sampled,
    spelled,
)
from _oracle import environment, write_case

COMMIT = "2d9d4d1af4119953b3a8541f914f85481d7e1e76"
UTILS = "src/t2i-r1/src/utils"


def stub_deepspeed() -> None:
    """Stand in for deepspeed, which is not installed."""
    import transformers  # noqa: F401  (looks for deepspeed once, as it is imported)

    stub: Any = types.ModuleType("deepspeed")
    stub.__spec__ = importlib.machinery.ModuleSpec("deepspeed", None)
    stub.zero = types.SimpleNamespace(GatheredParameters=lambda *_, **__: contextlib.nullcontext())
    sys.modules["deepspeed"] = stub


def score(orm: Any, path: Path, prompt: str) -> dict[str, Any]:
    """Score, details and error of one pair."""
    from PIL import Image

    watched: Watched = orm.model.generate
    image = Image.open(path)
    answers = spelled(orm.tokenizer, "yes", "no")

    def run() -> tuple[float, bool]:
        (number,) = orm([prompt], [image])
        return number, watched.returned.sequences[0][0].item() in answers

    with contextlib.suppress(ZeroDivisionError):
        run()
    shares = watched.probabilities()
    answered = shares[answers].sum().item()
    if not answered:
        return {"score": 0.0, "details": {"answered": 0.0}, "error": None}
    if not shares[[orm.yes_token_id, orm.no_token_id]].sum():
        return {"score": None, "details": {}, "error": "divides by"}
    return {"score": sampled(run), "details": {"answered": answered}, "error": None}


def main() -> None:
    """Write the case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    utils = options.upstream / UTILS
    add_upstream(utils, utils / "LLaVA-NeXT")
    stub_deepspeed()
    import reward_orm as upstream
    from llava.model import builder

    run_in_full_precision(builder)
    run_in_full_precision(upstream)
    orm = upstream.ORM(argparse.Namespace(orm_ckpt_path=str(options.out / FOLDER)))
    orm.load_to_device("cpu")
    Watched(orm.model)
    pairs = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows():
            pair = {"image": row["image"], "prompt": row["prompt"], "metadata": {}}
            if "refused" in row:
                pairs.append({**pair, "score": None, "details": {}, "error": row["refused"]})
                continue
            path, converted = as_upstream_reads_it(row["image"], Path(scratch))
            pair |= score(orm, path, row["prompt"])
            pairs.append({**pair, "converted": True} if converted else pair)
    # Most scores are cut to 0 or 1: the rows of a picture whose are not come first.
    pairs.sort(key=lambda pair: pair["image"] != "turned.jpg")
    case = {
        "reward": "orm:t2i-r1-sampled",
        "recipe": "orm/t2i-r1-sampled",
        "config": CONFIG,
        "files": {"checkpoint": f"../{FOLDER}"},
        "oracle": {
            "name": "CaraJ7/T2I-R1, reward_orm.py",
            "commit": COMMIT,
            "environment": environment("torch", "transformers"),
            "dtype": "float32",
        },
        "tolerance": 1e-5,
    }
    write_case(options.out / "orm-t2i-r1-sampled", case, pairs)


if __name__ == "__main__":
    main()
