"""Critics in the lab: an ORM and a PARM of the mini generator's pictures, and a preference model.

    python -m benchmarks.critics [--folder runs/lab_critics] [--only orm]

Trains `lab_orm` and `lab_parm` by `rewardzoo train critic` where that is not done yet, and measures, all
against the exact judge: how often each is right and how well calibrated, in-domain and out-of-domain; PARM by
step; that a served process gives the very scores that the training process gave; the best of N by each, and
what PARM's search saves; and a preference model trained by Bradley and Terry. Intervals are 95%, by bootstrap
over prompts. Writes results/critics.json. Needs the extras train and serve.

What is done is not repeated: start it again in the same words.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from rich.console import Console

from benchmarks.critic_search import search
from benchmarks.serving.harness import RESULTS, ROOT, hardware, running, zoo
from rewardzoo import RewardClient
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.rewards import load
from rewardzoo.trainers.critic.config import CriticConfig
from rewardzoo.trainers.critic.formats import import_data
from rewardzoo.trainers.critic.quality import calibration_error
from rewardzoo.trainers.critic.records import read
from rewardzoo.trainers.critic.train import train
from rewardzoo.trainers.lab import Split
from rewardzoo.trainers.lab.preferences import write_preferences
from rewardzoo.trainers.lab.qwen_minis import write_base
from rewardzoo.trainers.lab.training import preference_accuracy

Row = Mapping[str, Any]
SPLITS = ("in_domain", "out_of_domain")
SERVED_UNFINISHED = 512
BOOTSTRAP = Bootstrap()
PARTS = ("orm", "parm", "served", "search", "preference")
PREFERENCES = {"train": (8000, 9000), "in_domain": (1500, 9001), "out_of_domain": (1500, 9002)}
"""Pairs of each split, and the seed."""
console = Console(highlight=False)


def run(out: Path, kind: str) -> None:
    """Train as the configuration that ships says, in a process of its own."""
    if (out / "reward.json").exists():
        return
    folder = out.parent
    weights = folder / ("base" if kind == "orm" else "orm/model")
    settings = [f"run.out={out}", f"data.folder={folder / 'data'}", f"model.weights={weights}"]
    command = [sys.executable, "-m", "rewardzoo", "train", "critic", "--config", f"lab_{kind}", *settings]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def trained(folder: Path) -> list[str]:
    """Which of the critics are there."""
    return [kind for kind in ("orm", "parm") if (folder / kind / "reward.json").exists()]


def said(out: Path) -> list[dict[str, Any]]:
    """What the training process said of each row of the held-out splits."""
    lines = (out / "predictions.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] in SPLITS]


def is_right(row: Row) -> bool:
    return (row["p_yes"] >= 0.5) == (row["label"] > 0.5)


def mean(rows: Iterable[Row], value: Callable[[Row], float]) -> dict[str, float]:
    """Mean of a value over rows, its interval, and of how many rows and prompts."""
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(float(value(row)))
    top = np.array([[sum(values)] for values in by_prompt.values()])
    count = np.array([[float(len(values))] for values in by_prompt.values()])
    found = BOOTSTRAP.estimate(top.sum() / count.sum(), BOOTSTRAP.ratios(top, count)[:, 0])
    return {
        "mean": found.value,
        "low": found.low,
        "high": found.high,
        "rows": int(count.sum()),
        "prompts": len(by_prompt),
    }


def quality(rows: Sequence[Row]) -> dict[str, Any]:
    p = np.array([row["p_yes"] for row in rows])
    labels = np.array([row["label"] > 0.5 for row in rows])
    usual = float(labels.mean() >= 0.5)
    return {
        "accuracy": mean(rows, is_right),
        "base_rate": float(labels.mean()),
        "above_base_rate": mean(rows, lambda row: is_right(row) - float(row["label"] == usual)),
        "ece": calibration_error(p, labels),
    }


def about_training(out: Path) -> dict[str, Any]:
    found = json.loads((out / "metrics.json").read_text())
    config = yaml.safe_load((out / "config.yaml").read_text())
    return {
        "rows": found["rows"],
        "fit": found["fit"],
        "temperatures": found["temperatures"],
        "optimizer": config["optimizer"],
        "epochs": config["run"]["epochs"],
        "seed": config["run"]["seed"],
    }


def orm(folder: Path) -> dict[str, Any]:
    out = folder / "orm"
    rows = said(out)
    found = about_training(out)
    for split in SPLITS:
        found[split] = quality([row for row in rows if row["split"] == split])
    return found


def parm(folder: Path) -> dict[str, Any]:
    """Each question; and clarity and potential by step, the first of which most are called clear."""
    out = folder / "parm"
    rows = said(out)
    found = about_training(out)
    for split in SPLITS:
        here = [row for row in rows if row["split"] == split]
        by_group = {name: [r for r in here if r["group"] == name] for name in ("selection", "clarity")}
        found[split] = {name: quality(some) for name, some in by_group.items()}
        steps = sorted({row["category"] for row in by_group["clarity"]}, key=_step)
        found[split]["steps"] = {step: _at_step(here, step) for step in steps}
        found[split]["first_clear"] = next(
            s for s in steps if found[split]["steps"][s]["called_clear"] >= 0.5
        )
    return found


def _at_step(rows: Sequence[Row], step: str) -> dict[str, Any]:
    here = [row for row in rows if row["category"] == step]
    clarity, potential = ([r for r in here if r["group"] == name] for name in ("clarity", "potential"))
    return {
        "called_clear": float(np.mean([row["p_yes"] >= 0.5 for row in clarity])),
        "clarity": mean(clarity, is_right),
        **({"potential": quality(potential)} if potential else {}),
    }


def _step(category: str) -> int:
    return int(category.partition("/")[0])


def served(folder: Path, client: RewardClient) -> dict[str, Any]:
    """The largest difference between what the training process said and what a served process scores."""
    data = read(folder / "data", "in_domain")
    places = {
        (s, p, k): i
        for i, (s, p, k) in enumerate(zip(data["stage"], data["picture"], data["step"], strict=True))
    }
    found = {}
    for kind in trained(folder):
        rows = [row for row in said(folder / kind) if row["split"] == "in_domain"]
        for group in ("selection", "clarity", "potential"):
            asked = [row for row in rows if row["group"] == group]
            if not asked:
                continue
            if group != "selection":
                asked = asked[:: max(1, len(asked) // SERVED_UNFINISHED)]
            total = int(data[0]["steps"])
            keys = [
                (group, r["picture"], total if group == "selection" else _step(r["category"])) for r in asked
            ]
            images = [np.asarray(data[places[key]]["image"].convert("RGB")) for key in keys]
            notes = [{"stage": "selection" if group == "selection" else "potential"}] * len(asked)
            result = client.score_result(
                images, [r["prompt"] for r in asked], reward=f"{kind}:{kind}", metadata=notes
            )
            scores = result.scores if kind == "orm" else [details[group] for details in result.details]
            gaps = np.abs(np.array(scores, float) - [row["p_yes"] for row in asked])
            found[f"{kind}: {group}"] = {
                "rows": len(asked),
                "largest_difference": float(gaps.max()),
                "within_1e-6": float((gaps <= 1e-6).mean()),
            }
    return found


def preference(folder: Path) -> dict[str, Any]:
    """Teach what `pickscore:mini` forgot: its later layers and projections begin anew."""
    data, start, out = (folder / "preference" / name for name in ("data", "start", "pickscore"))
    if not (out / "reward.json").exists():
        for split, (count, seed) in PREFERENCES.items():
            domain: Split = "out_of_domain" if split == "out_of_domain" else "in_domain"
            import_data(write_preferences(folder / "preference" / split, count, seed, [domain]), data, split)
        write_forgetful(start)
        train(preference_config(data, start, out))
    rows = said(out)
    found = about_training(out)
    found["start"] = preference_accuracy(load("pickscore:mini", device="cpu", weights=start), 1000, seed=9003)
    for split in SPLITS:
        found[split] = mean([row for row in rows if row["split"] == split], is_right)
    return found


def preference_config(data: Path, start: Path, out: Path) -> CriticConfig:
    held_out = dict.fromkeys(SPLITS)
    return CriticConfig.model_validate(
        {
            "data": {"folder": data, "held_out": held_out},
            "model": {"base": "pickscore:mini", "weights": start, "loss": "preference"},
            "optimizer": {
                "lr": 1e-3,
                "betas": [0.9, 0.98],
                "weight_decay": 0.05,
                "schedule": "cosine",
                "warmup_steps": 30,
                "micro_batch_size": 32,
            },
            "run": {"out": out, "epochs": 2, "batch_size": 32, "patience": 100, "threads": 1},
        }
    )


def write_forgetful(folder: Path) -> None:
    """Write `pickscore:mini` with the last half of its layers and both projections drawn anew."""
    from safetensors.torch import save_file

    from rewardzoo.rewards import _clip

    known = load("pickscore:mini", device="cpu")
    torch.manual_seed(0)
    fresh = _clip.build(known.variant.config).state_dict()
    state = {
        key: (fresh[key] if _is_late(key) else weight).contiguous()
        for key, weight in known.net.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")


def _is_late(key: str) -> bool:
    place = key.partition(".layers.")[2].partition(".")[0]
    depth = {"text_model": 1, "vision_model": 2}.get(key.partition(".")[0], 0)  # of 3 and of 4
    return key.endswith("_projection.weight") or (place != "" and int(place) >= depth)


def main(
    folder: Annotated[Path, typer.Option(help="Where data and critics are kept.")] = ROOT
    / "runs/lab_critics",
    only: Annotated[str, typer.Option(help=f"One of {', '.join(PARTS)}; the others as they were.")] = "",
) -> None:
    torch.set_num_threads(1)
    folder = folder.resolve()
    path = RESULTS / "critics.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    wanted = [only] if only else PARTS
    if {"orm", "parm"} & {*wanted}:
        if not (folder / "base").exists():
            write_base(folder / "base")
        for kind in ("orm", "parm"):
            if kind in wanted:
                run(folder / kind, kind)
    parts: dict[str, Callable[[], Any]] = {
        "orm": lambda: orm(folder),
        "parm": lambda: parm(folder),
        "preference": lambda: preference(folder),
    }
    for name in wanted:
        if name in parts:
            found[name] = parts[name]()
            console.print_json(json.dumps({name: found[name]}))
    if {"served", "search"} & {*wanted}:
        with running(zoo(*(f"{kind}:{folder / kind}" for kind in trained(folder)))) as server:
            client = RewardClient(server.url)
            if "served" in wanted:
                found["served"] = served(folder, client)
            if "search" in wanted:
                found["search"] = search(client)
        console.print_json(json.dumps({name: found[name] for name in ("served", "search") if name in found}))
    found["hardware"] = hardware()
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
