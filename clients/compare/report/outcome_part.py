"""The report on RL runs: what was gained, what was hacked, and whether best-of-n foretold it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from rewardzoo.clients.compare.outcomes import Outcomes
from rewardzoo.clients.compare.report import plots
from rewardzoo.clients.compare.report.view import (
    DASH,
    Block,
    Drawing,
    Section,
    Table,
    estimate,
    number,
    sentence_of,
    signed,
    text,
)
from rewardzoo.clients.compare.summaries import Estimate

NAMES = {"grpo": "GRPO", "dpo": "DPO"}


def outcomes(found: Outcomes, look: Mapping[str, plots.Look]) -> Section:
    """Tell what training on each reward came to under the judge, in domain and out of domain."""
    seeds = max((cell.seeds for cell in found.cells), default=0)
    lead = [
        f"{len(found.runs)} runs, up to {seeds} {'seed' if seeds == 1 else 'seeds'} each, judged by "
        f"{found.judge}. Gains are from the policy a run began with to its end, in standard deviations of "
        "that policy's images; the hack gap is the gain of the run's own reward minus the judge's. Intervals "
        f"are over seeds, by Student's t{'' if seeds > 1 else ': of one seed there is none'}.",
        *_alarms(found),
        *_transfer_sentences(found),
    ]
    blocks: list[Block] = [_cells(found)]
    blocks += _gaps(found, look)
    blocks += _curves(found, look)
    blocks += _transfers(found, look)
    rows = tuple(
        (
            text(run.name, small=run.source),
            text(algorithm(run.algorithm)),
            text(run.reward),
            number(run.seed, "d"),
            number(run.steps, ",d"),
            text(
                "; ".join(f"step {a.step}: {a.judge}" for a in run.alarms) or DASH,
                tone="bad" if run.alarms else "",
            ),
        )
        for run in found.runs
    )
    blocks.append(
        Table("The runs.", ("run", "algorithm", "reward", "seed", "steps", "alarms"), rows, folded=True)
    )
    return Section(
        f"outcomes-{found.data.name}", f"RL outcomes: {found.data.name}", tuple(lead), tuple(blocks)
    )


def _alarms(found: Outcomes) -> Iterator[str]:
    alarmed = [run.name for run in found.runs if run.alarms]
    if alarmed:
        shown = sentence_of(alarmed[:5]) + (f" and {len(alarmed) - 5} more" if len(alarmed) > 5 else "")
        many = f"{len(alarmed)} of {len(found.runs)} runs"
        yield f"The over-optimisation alarm would have gone off in {many}: {shown}."
    else:
        yield "The over-optimisation alarm would have gone off in none of the runs."


def _transfer_sentences(found: Outcomes) -> Iterator[str]:
    for t in found.transfers:
        e = t.spearman
        known = math.isfinite(e.low)
        interval = f" ({signed(e.low, '.2f')} … {signed(e.high, '.2f')})" if known else ""
        yield (
            f"{titled(t.split)}, best-of-{t.n} ranks {len(t.rewards)} rewards as {algorithm(t.algorithm)} "
            f"does with a Spearman correlation of {signed(e.value, '.2f')}{interval}, p = {t.p:.2g}."
        )


def _cells(found: Outcomes) -> Table:
    rows = tuple(
        (
            text(algorithm(cell.algorithm)),
            text(cell.reward),
            text(cell.split.replace("_", " ")),
            text(cell.judge),
            number(cell.seeds, "d"),
            number(cell.base.value),
            estimate(cell.final),
            estimate(cell.gain, "+.2f", tone="bad" if cell.gain.value < 0 else ""),
            estimate(cell.hack_gap, "+.2f"),
        )
        for cell in sorted(found.cells, key=lambda c: (c.judge != found.judge, c.judge, c.algorithm, c.split))
    )
    header = ("algorithm", "trained on", "split", "judge", "seeds", "base", "final", "gain", "hack gap")
    return Table("What training came to.", header, rows)


def _gaps(found: Outcomes, look: Mapping[str, plots.Look]) -> Iterator[Drawing]:
    """Draw own gain against the judge's, a panel an algorithm and split."""
    panels: dict[str, list[tuple[str, Estimate, Estimate]]] = {}
    for cell in sorted(found.cells, key=lambda c: (c.algorithm, c.split)):
        if cell.judge == found.judge and math.isfinite(cell.gain.value - cell.own_gain.value):
            title = f"{algorithm(cell.algorithm)}, {cell.split.replace('_', ' ')}"
            panels.setdefault(title, []).append((cell.reward, cell.own_gain, cell.gain))
    if panels:
        caption = (
            "Gain of the reward that was trained on against the judge's, in the base's spread. On the dotted "
            "line both gained alike; the farther to the right of it, the more was hacked."
        )
        drawn = plots.scatter(panels, look, "own gain", f"gain by {found.judge}", diagonal=True)
        yield Drawing(caption, drawn, "Own gain against held-out gain")


def _curves(found: Outcomes, look: Mapping[str, plots.Look]) -> Iterator[Drawing]:
    about = {run.name: run for run in found.runs}
    panels: dict[str, list[tuple[str, tuple[float, ...], tuple[float, ...], float | None]]] = {}
    for series in sorted(found.series, key=lambda s: (about[s.run].algorithm, s.metric)):
        kind, split, judge = (*series.metric.split("/", 2), "", "")[:3]
        if kind == "eval" and judge == found.judge and len(series.steps) > 1:
            run = about[series.run]
            alarm = next((float(a.step) for a in run.alarms if a.judge == series.metric), None)
            title = f"{algorithm(run.algorithm)}, {split.replace('_', ' ')}"
            panels.setdefault(title, []).append((run.reward, series.steps, series.values, alarm))
    if panels:
        caption = f"{found.judge} over training, a line a run."
        yield Drawing(caption, plots.training(panels, look, found.judge), "The judge over training")


def _transfers(found: Outcomes, look: Mapping[str, plots.Look]) -> Iterator[Drawing]:
    panels = {
        f"{algorithm(t.algorithm)}, {t.split.replace('_', ' ')}": [
            *zip(t.rewards, t.best_of_n, t.trained, strict=True)
        ]
        for t in sorted(found.transfers, key=lambda t: (t.algorithm, t.split))
    }
    if panels:
        n = found.transfers[0].n
        caption = f"Does best-of-{n} foretell training? A point a reward, both judged by {found.judge}."
        drawn = plots.scatter(panels, look, f"best-of-{n}", "after training")
        yield Drawing(caption, drawn, "Best-of-n against RL outcome by reward")


def algorithm(name: str) -> str:
    """Return an algorithm's name as it is written."""
    return NAMES.get(name, name)


def titled(split: str) -> str:
    """Return a split's name as it begins a sentence."""
    return split.replace("_", " ").capitalize()
