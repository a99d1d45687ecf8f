"""The report on a study: the paper's claims beside what was measured, what scales, what a search saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from rewardzoo.clients.compare.report import plots
from rewardzoo.clients.compare.report.outcome_part import algorithm
from rewardzoo.clients.compare.report.view import (
    DASH,
    Block,
    Cell,
    Drawing,
    Section,
    Table,
    Tone,
    estimate,
    number,
    sentence_of,
    text,
)
from rewardzoo.clients.compare.study import MEAN, SIGNIFICANT, Finding, ScalingPoint, Study

_TONES: Mapping[str, Tone] = {"agrees": "good", "disagrees": "bad", "undecided": ""}
_PAPER = "arXiv 2505.17017"


def study(found: Study) -> Section:
    """Tell what a study found, claim by claim, with what it rests on."""
    verdicts = Counter(finding.verdict for finding in found.findings)
    lead = [
        f"The claims of {_PAPER} and of PARM beside what these runs say: {verdicts['agrees']} agree, "
        f"{verdicts['disagrees']} disagree, {verdicts['undecided']} are undecided, which is where the "
        f"{found.confidence:.0%} interval has 0 in it, there is none, or p is above {SIGNIFICANT}. "
        f"{found.judge} judges all of it, from 0 to 1; differences are in its scale. Intervals are over "
        "seeds, of which one alone decides nothing, and not narrower than the images of the evaluations "
        "allow; a search's are over prompts.",
        f"It took {found.minutes:.0f} minutes, and {found.core_minutes:.0f} of all processes together.",
        *(f"Left out: {each}" for each in found.left_out),
    ]
    blocks: list[Block] = [_findings(found), _versus(found)]
    blocks += _scaling(found)
    blocks += _search(found)
    blocks.append(
        Table(
            "How the rewards were trained.",
            ("reward", "trained"),
            tuple((text(each.reward), text(each.recipe)) for each in found.recipes),
        )
    )
    settings = tuple((text(name), text(value)) for name, value in found.settings.items())
    blocks.append(Table("What the runs were told.", ("", "setting"), settings))
    return Section(f"study-{found.data.name}", "The paper's claims", tuple(lead), tuple(blocks))


def _findings(found: Study) -> Table:
    rows = tuple(
        (
            text(finding.claim),
            text(finding.verdict, tone=_TONES[finding.verdict]),
            _shown(finding),
            text(finding.measure),
        )
        for finding in found.findings
    )
    return Table("The claims, and what was found of them here.", ("claim", "here", "", "measured"), rows)


def _shown(finding: Finding) -> Cell:
    return estimate(finding.estimate, "+.1%" if finding.percent else "+.3f")


def _versus(found: Study) -> Table:
    rows: dict[str, dict[str, Cell]] = {}
    for each in found.versus:
        rows.setdefault(each.reward, {})[each.split] = estimate(each.difference, "+.3f")
    splits = list(dict.fromkeys(each.split for each in found.versus))
    ordered = sorted(rows, key=lambda reward: reward == MEAN)
    seeds = max((each.seeds for each in found.versus), default=0)
    return Table(
        f"DPO minus GRPO after training, by {found.judge}: pairs of the same seed, {seeds} of them.",
        ("trained on", *(split.replace("_", " ") for split in splits)),
        tuple(
            (text(reward), *(rows[reward].get(split, text(DASH)) for split in splits)) for reward in ordered
        ),
    )


def _scaling(found: Study) -> Iterator[Block]:
    if not found.scaling:
        return
    axes = list(dict.fromkeys(point.axis for point in found.scaling))
    panels = {axis: _lines([p for p in found.scaling if p.axis == axis]) for axis in axes}
    names = list(dict.fromkeys(name for lines in panels.values() for name, *_ in lines))
    seeds = max(point.seeds for point in found.scaling)
    whose = f"over {seeds} seeds" if seeds > 1 else "of the evaluation's images, for there is one seed"
    caption = (
        f"{found.judge} by what is scaled, the number of images the same. Bands are {found.confidence:.0%} "
        f"intervals {whose}."
    )
    drawn = plots.curves(panels, plots.looks(names), "", found.judge)
    yield Drawing(caption, drawn, "The judge's score along the scaling axes")
    splits = list(dict.fromkeys(point.split for point in found.scaling))
    cells = {(p.axis, p.algorithm, p.value, p.split): estimate(p.final) for p in found.scaling}
    keys = dict.fromkeys((p.axis, p.algorithm, p.value) for p in found.scaling)
    rows = tuple(
        (
            text(axis),
            text(algorithm(name)),
            number(value, ",d"),
            *(cells.get((axis, name, value, split), text(DASH)) for split in splits),
        )
        for axis, name, value in keys
    )
    header = ("axis", "algorithm", "value", *(split.replace("_", " ") for split in splits))
    yield Table("The scaling axes in numbers.", header, rows, folded=True)


Line = tuple[str, tuple[int, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def _lines(points: list[ScalingPoint]) -> list[Line]:
    """Return a line an algorithm and split: name, values, and the estimates with their intervals."""
    lines: dict[str, list[ScalingPoint]] = {}
    for point in sorted(points, key=lambda point: point.value):
        name = f"{algorithm(point.algorithm)}, {point.split.replace('_', ' ')}"
        lines.setdefault(name, []).append(point)
    return [
        (
            name,
            tuple(p.value for p in of_line),
            tuple(p.final.value for p in of_line),
            tuple(p.final.low for p in of_line),
            tuple(p.final.high for p in of_line),
        )
        for name, of_line in lines.items()
    ]


def _search(found: Study) -> Iterator[Block]:
    if not found.search:
        return
    searched, picked = found.search_names
    rows = tuple(
        (
            text(point.split.replace("_", " ")),
            number(point.n, "d"),
            estimate(point.right),
            estimate(point.best_of_n),
            estimate(point.drawn, ".2f"),
            _at_least(estimate(point.equal_n, ".2f"), point.capped),
            _at_least(estimate(point.saved, "+.1%"), point.capped),
        )
        for point in found.search
    )
    prompts = sentence_of(sorted({f"{point.prompts:,}" for point in found.search}))
    yield Table(
        f"{searched} gives up paths without potential; what it draws for a prompt, counted in images, "
        f"against the best of n by {picked} that is right as often. {prompts} prompts a split; the critics' "
        "own time is not counted.",
        ("split", "paths", "right", f"best of n, {picked}", "drawn", "n that is right as often", "saved"),
        rows,
    )


def _at_least(cell: Cell, capped: bool) -> Cell:
    return replace(cell, text=f"≥ {cell.text}") if capped else cell
