"""The report on what people prefer, and on how rewards agree with each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from rewardzoo.clients.compare.report import plots
from rewardzoo.clients.compare.report.view import (
    DASH,
    MINUS,
    Block,
    Card,
    Cell,
    Drawing,
    Gallery,
    Picture,
    Section,
    Table,
    estimate,
    number,
    percent,
    signed,
    text,
)
from rewardzoo.clients.compare.summaries import ALL, Accuracy, Agreement, Contrast, Example, Preference

_EXAMPLES = 12
# Where ties can be right, what guessing reaches depends on how many there are.
_TIES_COUNT = ("genai-bench", "pickapic")


def preference(found: Preference, look: Mapping[str, plots.Look]) -> Section:
    """Tell how often each reward prefers what people prefer."""
    metrics = list(dict.fromkeys(a.metric for a in found.accuracies))
    overall = sorted(
        (a for a in found.accuracies if a.category == ALL and a.metric == metrics[0]),
        key=lambda a: -a.estimate.value,
    )
    categories = [c for c in dict.fromkeys(a.category for a in found.accuracies) if c != ALL]
    rows = {"all": [(a.reward, a.estimate) for a in overall]}
    for category in categories:
        rows[category.replace("_", " ")] = [
            (a.reward, a.estimate)
            for a in found.accuracies
            if a.category == category and a.metric == metrics[0]
        ]
    lead = [
        f"The share of {found.data.pairs:,} pairs that a reward orders as they are labelled. {found.rule}",
        best_sentence([(a.reward, a.estimate.value) for a in overall], found.contrasts, ALL),
    ]
    blocks: list[Block] = []
    if len(rows) <= 12:
        chance = None if found.data.benchmark in _TIES_COUNT else 0.5
        drawn = plots.dots(rows, look, "accuracy", chance)
        caption = f"Accuracy with {found.confidence:.0%} intervals."
        caption += " The dotted line is guessing." if chance else ""
        blocks.append(Drawing(caption, drawn, "Accuracy by reward and category"))
    blocks += [_accuracies(found.accuracies, metric) for metric in metrics]
    blocks += list(contrasts(found.contrasts, "accuracy", ".1%"))
    return Section(
        f"preference-{found.data.name}", f"Preference accuracy: {found.data.name}", _said(lead), tuple(blocks)
    )


def _accuracies(accuracies: Sequence[Accuracy], metric: str) -> Table:
    found = {(a.reward, a.category): a for a in accuracies if a.metric == metric}
    rewards = dict.fromkeys(reward for reward, _ in found)
    categories = sorted(dict.fromkeys(category for _, category in found), key=lambda c: c != ALL)
    best = {
        c: max((found[r, c].estimate.value for r in rewards if (r, c) in found), default=np.nan)
        for c in categories
    }

    def cell(reward: str, category: str) -> Cell:
        if (a := found.get((reward, category))) is None:
            return text(DASH)
        return percent(a.estimate, tone="good" if a.estimate.value == best[category] else "")

    rows = [(text(reward), *(cell(reward, category) for category in categories)) for reward in rewards]
    return Table(
        f"{metric.replace('_', ' ').capitalize()} by category; the best is green.",
        ("reward", *(category.replace("_", " ") for category in categories)),
        tuple(rows),
    )


def contrasts(found: Sequence[Contrast], what: str, form: str) -> Iterator[Table]:
    """Yield a table of paired differences, folded; nothing where there is none."""
    if not found:
        return
    several = len({c.split for c in found}) > 1
    rows = tuple(
        (
            text(f"{c.a} {MINUS} {c.b}"),
            *([text(_split(c.split))] if several else []),
            estimate(c.difference, "+" + form),
            number(c.p, ".4f"),
            number(c.p_holm, ".4f", tone="good" if c.p_holm < 0.05 else ""),
        )
        for c in found
    )
    header = ("rewards", *(["split"] if several else []), f"difference of {what}", "p", "p, corrected")
    caption = "Paired differences, by the bootstrap over prompts; p corrected by Holm, green below 5%."
    yield Table(caption, header, rows, folded=True)


def best_sentence(ranked: Sequence[tuple[str, float]], found: Sequence[Contrast], split: str) -> str:
    """Say which reward comes first, and of which others the difference is significant."""
    if len(ranked) < 2:
        return ""
    ranked = sorted(ranked, key=lambda pair: -pair[1])
    first = ranked[0][0]
    beaten = {
        c.b if c.a == first else c.a
        for c in found
        if first in (c.a, c.b) and c.split == split and c.p_holm < 0.05
    }
    others = [name for name, _ in ranked[1:]]
    if not any(c.split == split for c in found):
        return f"{first} comes first."
    if all(name in beaten for name in others):
        return f"{first} comes first, significantly before every other."
    level = [name for name in others if name not in beaten]
    shown = ", ".join(level[:4]) + (f" and {len(level) - 4} more" if len(level) > 4 else "")
    return f"{first} comes first, but not significantly before {shown}."


def agreement(found: Agreement, folder: Path) -> Section:
    """Tell how alike rewards order images, and show where they do not."""
    rewards = [reward.name for reward in found.rewards]
    blocks: list[Block] = []
    for scope, what in (("prompt", "among the images of one prompt"), ("overall", "over all images")):
        values = np.full((len(rewards), len(rewards)), np.nan)
        np.fill_diagonal(values, 1.0)
        for c in found.correlations:
            if c.scope == scope and c.a in rewards and c.b in rewards:
                # One half has Kendall's tau, the other Spearman's correlation.
                places = sorted((rewards.index(c.a), rewards.index(c.b)), reverse=c.measure == "kendall")
                values[tuple(places)] = c.estimate.value
        if np.isfinite(values).sum() > len(rewards):
            caption = f"Rank correlation {what}: below the diagonal Kendall's tau-b, above it Spearman's."
            half = len(rewards) <= 5
            drawn = plots.heat(values, rewards, rewards, "rank correlation", cell=0.6 if half else 0.95)
            blocks.append(Drawing(caption, drawn, caption, half))
    blocks.append(_correlations(found))
    if found.examples:
        blocks.append(_disagreements(found.examples, folder))
    lead = (
        f"1 is the same order, 0 no relation, {MINUS}1 the reverse. Rewards that agree among one prompt's "
        "images push a policy the same way.",
    )
    return Section(f"agreement-{found.data.name}", f"Agreement: {found.data.name}", lead, tuple(blocks))


def _correlations(found: Agreement) -> Table:
    rows = tuple(
        (
            text(f"{c.a}, {c.b}"),
            text(c.measure),
            text("one prompt" if c.scope == "prompt" else "all images"),
            estimate(c.estimate),
            number(c.prompts, ",.0f"),
        )
        for c in found.correlations
    )
    return Table(
        "All rank correlations", ("rewards", "measure", "among", "correlation", "prompts"), rows, folded=True
    )


def _disagreements(examples: Sequence[Example], folder: Path) -> Gallery:
    cards: list[Card] = []
    shown: set[frozenset[int]] = set()
    for example in sorted(examples, key=lambda e: -e.strength):
        # The same two pictures often divide several rewards.
        if (both := frozenset(example.items)) in shown or len(cards) == _EXAMPLES:
            continue
        shown.add(both)
        pictures = []
        for side, choice in enumerate(("first", "second")):
            by = (example.a, example.b)[side]
            scores = tuple(
                (name, signed(pair[side], ".4g"))
                for name, pair in example.scores.items()
                if name in (example.a, example.b)
            )
            asked = "as labelled" if example.label == choice else ""
            pictures.append(
                Picture(
                    folder / example.images[side],
                    f"{by} prefers this" + (f", {asked}" if asked else ""),
                    scores,
                    "good" if asked else "",
                )
            )
        cards.append(Card(example.prompt, tuple(pictures)))
    return Gallery("Where two rewards disagree most, by the smaller of both gaps.", tuple(cards), columns=3)


def _split(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")


def _said(lead: Sequence[str]) -> tuple[str, ...]:
    return tuple(paragraph for paragraph in lead if paragraph)
