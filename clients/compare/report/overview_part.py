"""The report's first page: what was compared, each reward in a line, and the tables of the paper."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rewardzoo.clients.compare.outcomes import IN_DOMAIN, OUT_OF_DOMAIN, Outcomes
from rewardzoo.clients.compare.probe_effects import Probes
from rewardzoo.clients.compare.report.outcome_part import algorithm
from rewardzoo.clients.compare.report.view import (
    DASH,
    Block,
    Cell,
    Commands,
    Section,
    Table,
    Tone,
    estimate,
    number,
    percent,
    text,
)
from rewardzoo.clients.compare.summaries import ALL, Agreement, BestOfN, Estimate, Preference, Summary
from rewardzoo.clients.compare.transfer import picks

T = TypeVar("T", bound=Summary)
SPLITS = (IN_DOMAIN, OUT_OF_DOMAIN)


def glance(found: Sequence[Summary]) -> Section:
    """Tell what was compared on, and what each reward came to in a line."""
    rewards = rewards_of(found)
    columns = [*_accuracy(found), *_selection(found), *_hacks(found), *_gains(found)]
    rows = [(text(name), *(column(name) for _, column in columns)) for name in rewards]
    blocks: list[Block] = []
    if columns:
        header = ("reward", *(name for name, _ in columns))
        blocks.append(Table("Each reward in a line.", header, tuple(rows)))
    blocks += paper_tables(found)
    return Section("glance", "At a glance", (), tuple(blocks))


def rewards_of(found: Sequence[Summary]) -> list[str]:
    """Return all rewards of a comparison, each once."""
    return list(dict.fromkeys(reward.name for summary in found for reward in summary.rewards))


def _of(found: Sequence[Summary], kind: type[T]) -> Iterator[T]:
    yield from (summary for summary in found if isinstance(summary, kind))


Column = tuple[str, Callable[[str], Cell]]


def _accuracy(found: Sequence[Summary]) -> Iterator[Column]:
    for summary in _of(found, Preference):
        metric = summary.accuracies[0].metric if summary.accuracies else ""
        values = {
            a.reward: a.estimate for a in summary.accuracies if a.category == ALL and a.metric == metric
        }
        yield f"accuracy, {summary.data.name}", _cells(values, percent)


def _selection(found: Sequence[Summary]) -> Iterator[Column]:
    for summary in _of(found, BestOfN):
        splits = dict.fromkeys(gap.split for gap in summary.gaps)
        for split in [s for s in SPLITS if s in splits] or [ALL]:
            values = {gap.reward: gap.share for gap in summary.gaps if gap.split == split}
            where = "" if split == ALL else f", {split.replace('_', ' ')}"
            yield f"best of n, share of oracle{where}", _cells(values, percent)


def _hacks(found: Sequence[Summary]) -> Iterator[Column]:
    for summary in _of(found, Probes):
        probed = {effect.reward for effect in summary.effects}

        def cell(name: str, summary: Probes = summary, probed: set[str] = probed) -> Cell:
            if name not in probed:
                return text(DASH)
            hacks = [e.probe for e in summary.effects if e.reward == name and e.hacks]
            return Cell(str(len(hacks)), ", ".join(hacks[:3]), float(len(hacks)), "bad" if hacks else "")

        yield "hacked by", cell


def _gains(found: Sequence[Summary]) -> Iterator[Column]:
    for summary in _of(found, Outcomes):
        for name in dict.fromkeys(cell.algorithm for cell in summary.cells):
            values = {
                cell.reward: cell.final
                for cell in summary.cells
                if (cell.algorithm, cell.split, cell.judge) == (name, OUT_OF_DOMAIN, summary.judge)
            }
            if values:
                yield f"{algorithm(name)} out of domain, {summary.judge}", _cells(values, estimate)


def _cells(values: dict[str, Estimate], shown: Callable[..., Cell]) -> Callable[[str], Cell]:
    best = max((e.value for e in values.values() if math.isfinite(e.value)), default=math.nan)

    def cell(name: str) -> Cell:
        if name not in values:
            return text(DASH)
        tone: Tone = "good" if values[name].value == best else ""
        return shown(values[name], tone=tone)

    return cell


def paper_tables(found: Sequence[Summary]) -> Iterator[Table]:
    """Yield tables of the paper's shape (arXiv 2505.17017): rewards by algorithm and best-of-4, by split."""
    pools = list(_of(found, BestOfN))
    for summary in _of(found, Outcomes):
        columns: list[tuple[str, str, dict[str, Estimate]]] = []
        algorithms = sorted(dict.fromkeys(cell.algorithm for cell in summary.cells))
        chosen = next((pool for pool in pools if pool.judge.name == summary.pool_judge), None)
        for split in SPLITS:
            for name in algorithms:
                cells = [
                    c
                    for c in summary.cells
                    if (c.algorithm, c.split, c.judge) == (name, split, summary.judge)
                ]
                columns.append((algorithm(name), split, {c.reward: c.final for c in cells}))
            if chosen:
                n, picked = picks(chosen, split)
                columns.append((f"best of {n}", split, picked))
        columns = [column for column in columns if column[2]]
        rewards = [r.name for r in summary.rewards]
        if not columns or not rewards:
            continue
        best = [max((v[r].value for r in rewards if r in v), default=math.nan) for _, _, v in columns]
        bases = {
            cell.split: cell.base
            for cell in summary.cells
            if cell.judge == summary.judge and cell.split in SPLITS
        }
        rows = [(text("base policy"), *(_or_dash(bases.get(split)) for _, split, _ in columns))]
        for reward in rewards:
            shown = (
                _or_dash(
                    values.get(reward), "good" if reward in values and values[reward].value == top else ""
                )
                for (_, _, values), top in zip(columns, best, strict=True)
            )
            rows.append((text(reward), *shown))
        header = ("reward", *(f"{name}, {split.replace('_', ' ')}" for name, split, _ in columns))
        yield Table(
            f"{summary.judge} after training on a reward, and after picking by it.", header, tuple(rows)
        )


def _or_dash(value: Estimate | None, tone: Tone = "") -> Cell:
    return text(DASH) if value is None else estimate(value, tone=tone)


def grounds(found: Sequence[Summary], folder: Path) -> Section:
    """Tell what every number rests on, and how to get it again."""
    data = {(summary.data.fingerprint, summary.data.items): summary for summary in found}
    rows = tuple(
        (
            text(s.data.name),
            text(s.data.benchmark),
            text(s.data.source or DASH),
            text(s.data.license or DASH),
            *(number(n, ",d") if n else text(DASH) for n in (s.data.prompts, s.data.items, s.data.pairs)),
            text(s.data.fingerprint[:12]),
        )
        for s in data.values()
    )
    columns = ("data", "benchmark", "source", "licence", "prompts", "images", "pairs", "fingerprint")
    blocks: list[Block] = [Table("What was compared on.", columns, rows)]
    if provenance := _provenance(found):
        blocks.append(provenance)
    commands = list(dict.fromkeys(_wrapped(str(s.made["command"])) for s in found if s.made.get("command")))
    if commands:
        commands.append(shlex.join(["rewardzoo", "compare", "report", str(folder)]))
        blocks.append(Commands("How to get this report again.", tuple(commands)))
    made = tuple(
        (
            text(f"{s.kind}, {s.data.name}"),
            *(text(str(s.made.get(key, DASH))) for key in ("utc", "rewardzoo")),
            number(s.confidence, ".0%"),
            number(s.resamples, ",d"),
            number(s.seed, "d"),
        )
        for s in found
    )
    header = ("part", "made (UTC)", "rewardzoo", "intervals", "resamples", "seed")
    blocks.append(Table("How the statistics were made.", header, made, folded=True))
    return Section("grounds", "What it rests on", (), tuple(blocks))


def _provenance(found: Sequence[Summary]) -> Table | None:
    told: dict[str, dict[str, str]] = {}
    judges = [summary.judge for summary in _of(found, BestOfN)]
    judges += [scorer for summary in _of(found, Outcomes) for scorer in summary.scorers]
    for reward in [*(r for s in found for r in s.rewards), *judges]:
        for key, value in reward.provenance.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            told.setdefault(reward.name, {}).setdefault(key, shown)
    if not told:
        return None
    facts = list(dict.fromkeys(key for facts in told.values() for key in facts))
    rows = tuple((text(name), *(text(said.get(fact, DASH)) for fact in facts)) for name, said in told.items())
    return Table("What the scores rest on.", ("", *(fact.replace("_", " ") for fact in facts)), rows)


def _wrapped(command: str) -> str:
    """Begin a line of a command with each option."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(map(shlex.join, lines))


def judged_kinds(found: Sequence[Summary]) -> str:
    """Say in a few words what a comparison has."""
    words = {Preference: "preferences", BestOfN: "best of n", Agreement: "agreement", Probes: "probes"}
    there = [word for kind, word in words.items() if any(isinstance(s, kind) for s in found)]
    return ", ".join([*there, *(["RL outcomes"] if any(isinstance(s, Outcomes) for s in found) else [])])
