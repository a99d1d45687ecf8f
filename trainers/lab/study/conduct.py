"""From settings to a report: the jobs of a study, and what is made of them once they are done."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rewardzoo.clients.compare.agreement import agreement
from rewardzoo.clients.compare.best_of_n import best_of_n
from rewardzoo.clients.compare.findings import Scaled, findings, scaling, versus
from rewardzoo.clients.compare.outcomes import Outcomes, summarize_runs
from rewardzoo.clients.compare.report import write_report
from rewardzoo.clients.compare.runs import Run, read_run
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.clients.compare.study import Recipe, SearchPoint, Study
from rewardzoo.clients.compare.summaries import BestOfN, write_summary
from rewardzoo.trainers.lab.study.jobs import Job, run_jobs, spent
from rewardzoo.trainers.lab.study.plan import Planned, base_values, plan, scaling_reward, sizes
from rewardzoo.trainers.lab.study.pool import ORM, PARM, pool_store, search_points, spreads
from rewardzoo.trainers.lab.study.recipes import recipe_of, shipped
from rewardzoo.trainers.lab.study.settings import JUDGE, SPLITS, Place, StudySettings, begin

NAME = "lab"
TITLE = "The paper in miniature: DPO against GRPO in the lab"


@dataclass(frozen=True)
class Conducted:
    """A study that is done, and its report."""

    study: Study
    html: Path


def conduct(
    folder: Path,
    settings: StudySettings,
    *,
    processes: int,
    bootstrap: Bootstrap,
    made: Mapping[str, Any],
    say: Callable[[str], None] = lambda text: None,
) -> Conducted:
    """Run a study in a folder, or what is left of it, and write its report there.

    Raises:
        ValueError: another study was begun there, or settings do not fit.
        RewardZooError: a job failed.
        StoppedError: a signal came.
    """
    unknown = sorted(set(settings.rewards) - shipped())
    if unknown:
        raise ValueError(f"no mini rewards {', '.join(unknown)}: there are {', '.join(sorted(shipped()))}")
    place = begin(folder, settings)
    runs = plan(place)
    jobs = jobs_of(place, runs)
    run_jobs(place.folder / "jobs", jobs, processes, say)
    return _tell(place, runs, [job.name for job in jobs], bootstrap, made)


def jobs_of(place: Place, runs: Sequence[Planned]) -> list[Job]:
    """List the jobs: the pool is sampled and scored, GRPO runs, then DPO's, which need the pool's spreads."""
    scored = list(dict.fromkeys([*place.settings.rewards, place.tuned_for, *([ORM] if _searches() else [])]))
    sampled = [Job(f"pool/sample-{split}", partial(_own, place, "sample", split)) for split in SPLITS]
    # More rewards are another job, which scores by those alone that have not.
    name = f"pool/score-{zlib.crc32(' '.join(scored).encode()):08x}"
    score = Job(name, partial(_own, place, "score", *scored), tuple(job.name for job in sampled))
    trained = [
        Job(
            each.name,
            partial(_command, place, each),
            (score.name,) if each.algorithm == "dpo" else (),
        )
        for each in sorted(runs, key=lambda each: each.algorithm == "dpo")
    ]
    searched = [Job(f"search/{split}", partial(_own, place, "search", split)) for split in SPLITS]
    return [*sampled, score, *trained, *(searched if _searches() else [])]


def _searches() -> bool:
    return {PARM, ORM} <= shipped()


def _own(place: Place, *words: str) -> list[str]:
    return [sys.executable, "-m", "rewardzoo.trainers.lab.study", str(place.folder), *words]


def _command(place: Place, planned: Planned) -> list[str]:
    settings = [f"run.out={place.folder / 'runs' / planned.name}", *planned.settings]
    if planned.algorithm == "dpo":
        settings += _gaps(place, planned.reward)
    config = str(place.config(planned.algorithm))
    return [sys.executable, "-m", "rewardzoo", "train", planned.algorithm, "--config", config, *settings]


def _gaps(place: Place, reward: str) -> list[str]:
    """Say which pairs are too close, in another reward's scale: as many of its spreads between candidates."""
    pairs = place.dpo.pairs
    of = spreads(pool_store(place), [reward, place.tuned_for])
    if alike := [name for name, spread in of.items() if not spread > 0]:
        raise ValueError(
            f"{alike[0]} scores all candidates of the pool alike: there is nothing to learn from"
        )
    ratio = of[reward] / of[place.tuned_for]
    given = {"pairs.min_gap": pairs.min_gap, "pairs.min_std": pairs.min_std}
    return [f"{name}={value * ratio:.6g}" for name, value in given.items() if value]


def _tell(
    place: Place, runs: Sequence[Planned], jobs: Sequence[str], bootstrap: Bootstrap, made: Mapping[str, Any]
) -> Conducted:
    store = pool_store(place)
    rewards = list(place.settings.rewards)
    picked = best_of_n(
        store, rewards, store.reward(JUDGE), store.scores(JUDGE).astype(float), bootstrap, made
    )
    write_summary(place.folder, picked)
    if len(rewards) > 1:
        write_summary(place.folder, agreement(store, rewards, bootstrap, made, folder=place.folder))
    outcomes = summarize_runs(
        [_read(place, each) for each in runs if not each.axis],
        name=NAME,
        judge=JUDGE,
        pools=[picked],
        made=made,
        bootstrap=bootstrap,
    )
    write_summary(place.folder, outcomes)
    search = tuple(search_points(place, bootstrap)) if _searches() else ()
    study = _study(place, runs, picked, outcomes, search, spent(place.folder / "jobs", jobs))
    write_summary(place.folder, study)
    return Conducted(study, write_report(place.folder, title=TITLE).html)


def _study(
    place: Place,
    runs: Sequence[Planned],
    picked: BestOfN,
    outcomes: Outcomes,
    search: tuple[SearchPoint, ...],
    seconds: tuple[float, float],
) -> Study:
    images = place.settings.evaluation_prompts * place.grpo.evaluation.images_per_prompt
    compared = versus(outcomes, images)
    points, scaled = scaling(_scaled(place, runs), JUDGE, images, outcomes.confidence)
    left_out = []
    if not search:
        absent = sorted({PARM, ORM} - shipped())
        left_out.append(
            f"PARM's search against the best of n by ORM: the package has no {' and no '.join(absent)}."
        )
    if not points:
        left_out.append("The scaling axes: the command said --scaling-seeds 0.")
    return Study(
        data=outcomes.data,
        rewards=outcomes.rewards,
        confidence=outcomes.confidence,
        resamples=outcomes.resamples,
        seed=outcomes.seed,
        made=outcomes.made,
        judge=JUDGE,
        outcomes=outcomes.data.name,
        pool=picked.data.name,
        recipes=tuple(Recipe(reward, recipe_of(reward)) for reward in place.settings.rewards),
        findings=findings(outcomes, compared, scaled, search),
        versus=compared,
        scaling=points,
        search=search,
        search_names=(PARM, ORM) if search else (),
        left_out=tuple(left_out),
        settings=_settings(place),
        minutes=seconds[0] / 60,
        core_minutes=seconds[1] / 60,
    )


def _scaled(place: Place, runs: Sequence[Planned]) -> list[Scaled]:
    """Read the runs of the axes; those that the algorithms are compared by have a value of each, too."""
    found = [Scaled(each.axis, each.value, _read(place, each)) for each in runs if each.axis]
    reward, tried = scaling_reward(place), {(each.axis, each.run.algorithm) for each in found}
    for (axis, algorithm), value in base_values(place).items():
        for each in runs:
            shared = (each.axis, each.algorithm, each.reward) == ("", algorithm, reward)
            if shared and each.seed < place.settings.scaling_seeds and (axis, algorithm) in tried:
                found.append(Scaled(axis, value, _read(place, each)))
    return found


def _read(place: Place, planned: Planned) -> Run:
    return read_run(place.folder / "runs" / planned.name, planned.name)


def _settings(place: Place) -> dict[str, str]:
    length, settings = sizes(place), place.settings
    return {
        "GRPO": f"{length.grpo_steps} steps of {length.step_images} images",
        "DPO": f"{length.rounds} rounds of {length.round_images} images, {length.dpo_steps} steps",
        "seeds": ", ".join(map(str, range(settings.seeds))),
        "evaluation": f"{settings.evaluation_prompts} prompts a split, one image each",
        "pool": f"{settings.pool_prompts} prompts a split, {settings.pool_size} images each",
        "PARM's search": f"gives up paths of a potential below {settings.give_up_below:g}",
        "scaling axes": f"on {scaling_reward(place)}, seeds "
        f"{', '.join(map(str, range(settings.scaling_seeds))) or 'none'}",
        "changed": ", ".join(settings.overrides) or "nothing: the configurations that ship, but for length",
    }
