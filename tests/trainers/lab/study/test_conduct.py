"""What is made of a study's runs; and the whole command, stopped and started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.trainers.config import dump, load_config
from rewardzoo.trainers.dpo import DPOConfig
from rewardzoo.trainers.grpo import GRPOConfig
from rewardzoo.trainers.lab import prompt_of, render, sample_scene
from rewardzoo.trainers.lab.preferences import write_pool
from rewardzoo.trainers.lab.study import conduct as module
from rewardzoo.trainers.lab.study.jobs import Job
from rewardzoo.trainers.lab.study.pool import score_pool
from rewardzoo.trainers.lab.study.settings import StudySettings, open_place

SETTINGS = StudySettings(
    rewards=("clipscore:mini", "pickscore:mini"),
    seeds=2,
    steps=4,
    evaluation_prompts=200,
    pool_prompts=3,
    pool_size=4,
)


def pretend(folder: Path) -> Callable[..., None]:
    """Do jobs in this process: a pool of rendered scenes, and runs in which DPO gains more in domain."""

    def run_jobs(jobs_folder: Path, jobs: Sequence[Job], processes: int, say: object) -> None:
        place = open_place(folder)
        for job in jobs:
            _, _, _, *words = job.command()
            if job.name.startswith("pool/sample"):
                rng = np.random.default_rng(len(job.name))
                scenes = [sample_scene(rng) for _ in range(3)]
                write_pool(
                    place.pool / words[-1],
                    [
                        (
                            prompt_of(scene),
                            [render(sample_scene(rng), rng) for _ in range(3)] + [render(scene, rng)],
                        )
                        for scene in scenes
                    ],
                )
            elif job.name.startswith("pool/score"):
                score_pool(place, words[2:])
            else:
                algorithm, _, config, *settings = words[1:]
                kind = GRPOConfig if algorithm == "grpo" else DPOConfig
                write_run(load_config(kind, config, settings), algorithm)

    return run_jobs


def write_run(config: GRPOConfig | DPOConfig, algorithm: str) -> None:
    out = config.run.out
    out.mkdir(parents=True)
    (out / "config.yaml").write_text(dump(config))
    gained = {"in_domain": 0.3 if algorithm == "dpo" else 0.1, "out_of_domain": 0.1}
    noise = config.run.seed / 100
    rows = [
        {"step": step}
        | {f"eval/{s}/lab:exact": 0.3 + noise + gain * bool(step) for s, gain in gained.items()}
        | {f"eval_std/{s}/lab:exact": 0.5 for s in gained}
        for step in (0, config.run.steps)
    ]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_runs_become_a_report_that_says_what_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("study")
    monkeypatch.setattr(module, "run_jobs", pretend(folder))
    monkeypatch.setattr(module, "shipped", lambda: {"clipscore:mini", "pickscore:mini", "orm:mini"})
    found = module.conduct(folder, SETTINGS, processes=1, bootstrap=Bootstrap(100), made={})
    study = found.study
    first, second, *_ = study.findings
    assert (first.claim, first.verdict) == ("DPO is better than GRPO in domain.", "agrees")
    assert first.estimate.value == pytest.approx(0.2)
    assert (second.claim, second.verdict) == ("GRPO is better than DPO out of domain.", "undecided")
    assert any("the package has no parm:mini." in each for each in study.left_out)
    # The runs that the algorithms are compared by are a value of each axis.
    place = open_place(folder)
    values = {p.value for p in study.scaling if (p.axis, p.algorithm) == ("candidates per prompt", "grpo")}
    assert values == {4, 8, 16} | {place.grpo.grpo.group_size}
    page = found.html.read_text()
    for words in ("The paper&#39;s claims", "best of 4, out of domain", "More candidates per prompt help"):
        assert words in page
    # A report goes to others: it names folders as they were given.
    assert "study/runs/main/grpo/clipscore-mini/0" in page
    assert str(tmp_path) not in page


def test_an_unknown_reward_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"rewards": ("hpsv9:mini",)})
    with pytest.raises(ValueError, match="no mini rewards hpsv9:mini: there are blipvqa:mini"):
        module.conduct(tmp_path / "x", settings, processes=1, bootstrap=Bootstrap(100), made={})
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_command_goes_on_where_it_was_stopped_and_touches_no_finished_run(tmp_path: Path) -> None:
    out = tmp_path / "study"
    sizes = "--seeds 1 --steps 2 --scaling-seeds 0 --evaluation-prompts 4 --pool-prompts 4 --pool-size 4"
    tiny = (
        "grpo.prompts_per_step=2 grpo.group_size=4 prompts.count=16 pairs.prompts_per_round=4 "
        "pairs.candidates=4 pairs.per_prompt=1"
    )
    command = [
        sys.executable,
        "-m",
        "rewardzoo",
        "compare",
        "lab",
        "--out",
        str(out),
        "--reward",
        "clipscore:mini",
    ]
    command += [*sizes.split(), "--processes", "1", "--resamples", "100", *tiny.split()]
    first = subprocess.Popen(command, env={**os.environ, "COLUMNS": "200"})
    finished = out / "jobs/main/grpo/clipscore-mini/0.json"
    while not finished.exists():
        assert first.poll() is None
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 128 + signal.SIGTERM
    run = out / "runs/main/grpo/clipscore-mini/0"
    before = {path: path.stat().st_mtime_ns for path in [finished, *run.rglob("*")]}
    assert not (out / "report.html").exists()

    again = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in [finished, *run.rglob("*")]} == before
    done = re.findall(r"\[\d+/\d+\] (\S+):", again.stderr)
    assert "main/dpo/clipscore-mini/0" in done
    assert "main/grpo/clipscore-mini/0" not in done
    assert "DPO is better than GRPO in domain" in again.stdout
    assert "The paper&#39;s claims" in (out / "report.html").read_text()
