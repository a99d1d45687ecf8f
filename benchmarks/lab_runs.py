"""GRPO and DPO in the lab, from the same base, on rewards served by a BentoML process: does the truth rise?

    python -m benchmarks.lab_runs [--seeds 3] [--only grpo] [--jobs 2] [--folder runs/lab]

Runs each algorithm with `seeds` seeds on a served mini reward, GRPO once on the exact judge itself, and a few
steps of GRPO with and without overlap of scoring with the rest of the step. Writes results/lab_runs.json and
docs/lab_runs.png: the share of pictures that the exact judge finds right, in-domain and out-of-domain, by the
time spent training (evaluations left out), mean and 95% interval of the mean over seeds. All sample without
guidance, as they train; at the end the trained policies and the base are judged with the guidance that suits
the base best, on other prompts. Needs the extras train, serve and compare (for matplotlib).

A run that is done is not repeated, one that broke off goes on: start it again in the same words.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from benchmarks.serving.harness import RESULTS, ROOT, hardware, running, zoo
from rewardzoo.trainers.lab import Split, sample_prompts
from rewardzoo.trainers.lab.generator_report import judge_samples, suggested_sampling, summarize
from rewardzoo.trainers.policies import JanusPolicy
from rewardzoo.trainers.tracking import read_metrics

REWARD = "blipvqa:mini"
SETS: tuple[Split, ...] = ("in_domain", "out_of_domain")
JUDGE = "lab:exact"
PICTURE = ROOT / "docs" / "lab_runs.png"
OVERLAP = ("run.steps=12", "evaluation.sets={}", "sampling.batch_size=32", "grpo.beta=0.01")
"""With several batches and a reference, there is something to do while rewards are in flight."""
EVALUATION = (
    "evaluation.every=20",
    "evaluation.sets.in_domain.count=300",
    "evaluation.sets.out_of_domain.count=300",
)
LONG = (
    "run.steps=800",
    "optimizer.lr=4e-4",
    "evaluation.every=100",
    "run.save_every=100",
    "run.grid_every=100",
)
GUIDED_PROMPTS, GUIDED_SEED = 400, 2000
_WARM_UP = 2
console = Console(highlight=False)


@dataclass(frozen=True)
class Planned:
    """A run: its name and folder, the trainer, and the settings over those of the lab's configuration."""

    kind: str
    seed: int
    algorithm: str
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.seed}"


def plan(seeds: int) -> Iterator[Planned]:
    for seed in range(seeds):
        yield Planned("grpo", seed, "grpo")
        yield Planned("dpo", seed, "dpo")
    exact = (f"rewards.weights={{{JUDGE}: 1.0}}", "rewards.held_out=[]", *LONG)
    yield Planned("grpo_on_the_judge", 0, "grpo", exact)
    for overlap in ("true", "false"):
        yield Planned(f"grpo_overlap_{overlap}", 0, "grpo", (*OVERLAP, f"rewards.overlap={overlap}"))


def train(planned: Planned, folder: Path, url: str) -> None:
    out = folder / planned.name
    if (out / "policy").is_dir():
        console.print(f"{planned.name}: done before")
        return
    settings = (
        f"run.out={out}",
        f"run.seed={planned.seed}",
        "run.trackers=[]",
        "run.threads=1",
        *EVALUATION,
        f"rewards.url={url}",
        f"rewards.weights={{{REWARD}: 1.0}}",
        f"rewards.held_out=[{JUDGE}]",
        *planned.settings,
    )
    command = [sys.executable, "-m", "rewardzoo", "train", planned.algorithm]
    command += ["--config", f"lab_{planned.algorithm}", *settings]
    console.print(f"{planned.name}: trains in {out}")
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def curve(out: Path, name: str) -> list[tuple[float, int, float]]:
    """(Seconds of training so far, step, judged right) at each evaluation on set `name`."""
    spent, found = 0.0, []
    for line in read_metrics(out):
        spent += line.get("seconds") or 0.0
        if (value := line.get(f"eval/{name}/{JUDGE}")) is not None:
            found.append((spent, line["step"], value))
    return found


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean of the seeds and half the width of its 95% interval, by Student's t."""
    mean, n = statistics.fmean(values), len(values)
    half = float(student.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5 if n > 1 else None
    return {"mean": mean, "ci95": half, "seeds": list(values)}


def summary(kind: str, runs: Sequence[Path]) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": kind, "runs": len(runs)}
    for name in SETS:
        curves = [curve(out, name) for out in runs]
        found[name] = {
            "base": interval([points[0][2] for points in curves]),
            "trained": interval([points[-1][2] for points in curves]),
            "gain": interval([points[-1][2] - points[0][2] for points in curves]),
        }
        found["training_seconds"] = [points[-1][0] for points in curves]
        found["steps"] = curves[0][-1][1]
    rows = [line for out in runs for line in read_metrics(out) if "wait_share" in line]
    if rows:
        found["wait_share"] = statistics.fmean(line["wait_share"] for line in rows)
    return found


def guided(folder: Path | str) -> dict[str, float]:
    """Judge a policy at the sampling that the base suggests; kept beside the policy."""
    kept = None if folder == "mini" else Path(folder).parent / "guided.json"
    if kept is not None and kept.exists():
        return dict(json.loads(kept.read_text()))
    policy = JanusPolicy.load(folder)
    sampling = suggested_sampling(JanusPolicy.load("mini"))
    found = {}
    for name in SETS:
        prompts = sample_prompts(GUIDED_PROMPTS, name, GUIDED_SEED)
        found[name] = summarize(judge_samples(policy, prompts, 1, sampling, GUIDED_SEED))["right"]
    if kept is not None:
        kept.write_text(json.dumps(found) + "\n")
    return found


def overlap(folder: Path) -> dict[str, Any]:
    """The share of a step spent waiting for rewards, and the step, with overlap and without; medians."""
    found: dict[str, Any] = {}
    for said in ("true", "false"):
        out = folder / f"grpo_overlap_{said}-0"
        if not (out / "policy").is_dir():
            continue
        rows = [line for line in read_metrics(out) if line["step"] > _WARM_UP]
        keys = ("seconds", "seconds/sample", "seconds/reference", "seconds/wait", "seconds/update")
        found["with" if said == "true" else "without"] = {
            key: statistics.median(line[key] for line in rows) for key in (*keys, "wait_share")
        }
    return found


def draw(folder: Path, kinds: Mapping[str, Sequence[Path]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, name in zip(axes, SETS, strict=True):
        for kind, runs in kinds.items():
            curves = [curve(out, name) for out in runs]
            minutes = np.mean([[point[0] / 60 for point in points] for points in curves], axis=0)
            values = np.array([[point[2] for point in points] for points in curves])
            (line,) = axis.plot(
                minutes, values.mean(0), marker="o", markersize=3, label=kind.replace("_", " ")
            )
            if len(values) > 1:
                half = student.ppf(0.975, len(values) - 1) * values.std(0, ddof=1) / len(values) ** 0.5
                low, high = values.mean(0) - half, values.mean(0) + half
                axis.fill_between(minutes, low, high, alpha=0.2, color=line.get_color())
        axis.set(title=name.replace("_", "-"), xlabel="minutes of training, one core")
        axis.set_xscale("symlog", base=2, linthresh=4)  # short runs and a long one
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="share the exact judge finds right", ylim=(0, 1))
    axes[0].legend()
    figure.savefig(PICTURE, dpi=120)
    console.print(f"curves in {PICTURE.relative_to(ROOT)}")


def report(folder: Path, planned: Sequence[Planned]) -> None:
    kinds: dict[str, list[Path]] = {}
    for each in planned:
        out = folder / each.name
        if "overlap" not in each.kind and (out / "policy").is_dir():
            kinds.setdefault(each.kind, []).append(out)
    if not kinds:
        return
    rows = [summary(kind, runs) for kind, runs in kinds.items()]
    table = Table(title=f"share judged right by {JUDGE}: base -> trained")
    for column in ("", "seeds", "minutes", *SETS, "wait share"):
        table.add_column(column)
    for row in rows:
        shown = [f"{row[n]['base']['mean']:.1%} -> {_shown(row[n]['trained'])}" for n in SETS]
        minutes = f"{statistics.fmean(row['training_seconds']) / 60:.1f}"
        table.add_row(row["kind"], str(row["runs"]), minutes, *shown, f"{row.get('wait_share', 0):.1%}")
    console.print(table)
    at_best = {kind: [guided(out / "policy") for out in runs] for kind, runs in kinds.items()}
    found = {
        "hardware": hardware(),
        "reward": REWARD,
        "runs": rows,
        "guided": {"base": guided("mini"), **at_best},
        "overlap": overlap(folder),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "lab_runs.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(folder, kinds)


def _shown(found: Mapping[str, Any]) -> str:
    half = "" if found["ci95"] is None else f" ± {found['ci95']:.1%}"
    return f"{found['mean']:.1%}{half}"


def main(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds each algorithm is run with.")] = 3,
    only: Annotated[str, typer.Option(help="Only runs whose name begins so, e.g. grpo-0.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, on one thread each.")] = 2,
    folder: Annotated[Path, typer.Option(help="Where the runs are kept.")] = ROOT / "runs" / "lab",
) -> None:
    planned = [each for each in plan(seeds) if each.name.startswith(only)]
    if not all((folder / each.name / "policy").is_dir() for each in planned):
        with running(zoo(REWARD)) as server, ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda each: train(each, folder.resolve(), server.url), planned))
    report(folder.resolve(), list(plan(seeds)))


if __name__ == "__main__":
    typer.run(main)
