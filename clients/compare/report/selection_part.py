"""The report on best-of-n: what picking by a reward comes to, judged by an independent judge."""

from __future__ import annotations

from collections.abc import Mapping

from rewardzoo.clients.compare.report import plots
from rewardzoo.clients.compare.report.preference_part import best_sentence, contrasts
from rewardzoo.clients.compare.report.view import (
    Block,
    Drawing,
    Section,
    Table,
    estimate,
    number,
    percent,
    text,
)
from rewardzoo.clients.compare.summaries import ALL, BestOfN

_AIDS = ("oracle", "random")


def best_of_n(found: BestOfN, look: Mapping[str, plots.Look]) -> Section:
    """Tell what is gained by picking the best of n by each reward, and how far that is from the oracle."""
    splits = [s for s in dict.fromkeys(c.split for c in found.curves) if s != ALL] or [ALL]
    panels = {
        split.replace("_", " "): [
            (c.selector, c.n, c.value, c.low, c.high)
            for c in sorted(found.curves, key=lambda c: c.selector in _AIDS)
            if c.split == split
        ]
        for split in splits
    }
    largest = max((n for c in found.curves for n in c.n), default=0)
    lead = [
        f"Of n images of a prompt the one that a reward likes best, judged by {found.judge.name}: the "
        f"expectation over all draws of n from a pool of {found.data.items:,} images of "
        f"{found.data.prompts:,} prompts.",
    ]
    for split in splits:
        ranked = [(g.reward, g.share.value) for g in found.gaps if g.split == split]
        if sentence := best_sentence(ranked, found.contrasts, split):
            where = "" if split == ALL else f"{split.replace('_', ' ').capitalize()}: "
            lead.append(where + sentence)
    caption = f"The judge's score of the image picked out of n, with {found.confidence:.0%} bands."
    drawn = plots.curves(panels, look, "n", f"score by {found.judge.name}")
    blocks: list[Block] = [Drawing(caption, drawn, "Best-of-n curves by split")]
    rows = tuple(
        (
            text(gap.reward),
            text(gap.split.replace("_", " ")),
            number(gap.n, "d"),
            estimate(gap.oracle_gap),
            percent(gap.share, tone="bad" if gap.share.high < 0 else ""),
        )
        for gap in sorted(
            found.gaps, key=lambda g: (splits.index(g.split) if g.split in splits else -1, -g.share.value)
        )
    )
    blocks.append(
        Table(
            f"At n = {largest}: what the reward leaves on the table (oracle minus reward, in the judge's "
            "scale), and how much of the way from random to oracle it goes.",
            ("reward", "split", "n", "oracle gap", "share of the way"),
            rows,
        )
    )
    blocks += list(contrasts(found.contrasts, "the judge's score", ".3f"))
    return Section(
        f"best-of-n-{found.data.name}", f"Best of n: {found.data.name}", tuple(lead), tuple(blocks)
    )
