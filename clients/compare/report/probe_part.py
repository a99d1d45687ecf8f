"""The report on robustness: what moves a reward though it makes no picture better."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rewardzoo.clients.compare.probe_effects import Effect, ProbeInfo, Probes
from rewardzoo.clients.compare.report import plots
from rewardzoo.clients.compare.report.view import (
    Block,
    Card,
    Drawing,
    Gallery,
    Picture,
    Section,
    Table,
    estimate,
    number,
    percent,
    sentence_of,
    signed,
    text,
)

_LIMIT = 2.0


def probes(found: Probes, folder: Path) -> Section:
    """Tell how far each probe moves each reward, and which reward is hacked by what."""
    names = [reward.name for reward in found.rewards]
    effects = {(e.probe, e.reward): e for e in found.effects}
    shown = [probe for probe in found.probes if any((probe.name, name) in effects for name in names)]
    shift = np.array([[_shift(effects.get((p.name, name))) for name in names] for p in shown]).reshape(
        -1, len(names)
    )
    hacks = np.array([[_hacks(effects.get((p.name, name))) for name in names] for p in shown]).reshape(
        -1, len(names)
    )
    lead = (
        f"{found.data.items:,} pictures of {found.data.prompts:,} prompts, changed in {len(shown)} ways of "
        "which none makes a picture better. A reward should stay where it is under most, and fall under a "
        "wrong prompt, shuffled words or a blank picture. One that rises for most pictures can be hacked: a "
        "policy that is trained on it learns to make such pictures.",
        _verdict(found),
    )
    caption = (
        "Mean change of the score, in standard deviations between pictures. Framed: a hack (a change of the "
        "image by which most pictures rise, on the whole by a tenth of the spread or more). ↓: should fall."
    )
    labels = [p.name + (" ↓" if p.expected == "lower" else "") for p in shown]
    drawn = plots.heat(shift, labels, names, "mean shift / spread", limit=_LIMIT, form="+.2f", marks=hacks)
    blocks: list[Block] = [Drawing(caption, drawn, "Mean shift by probe and reward")]
    if any(hacks.flat):
        blocks.append(_table("Hacks, worst first.", [e for e in found.effects if e.hacks], worst=True))
    if found.examples:
        blocks.append(_raised(found, folder))
    if pictures := _looks(shown, folder):
        blocks.append(pictures)
    blocks.append(_table("All effects.", list(found.effects), folded=True))
    rows = tuple(
        (text(s.reward), number(s.images, ".4g"), number(s.candidates, ".4g")) for s in found.spreads
    )
    blocks.append(
        Table(
            "The units: standard deviations of unchanged pictures' scores, in the reward's raw scale.",
            ("reward", "between pictures", "between candidates of a prompt"),
            rows,
            folded=True,
        )
    )
    return Section(f"probes-{found.data.name}", f"Probes: {found.data.name}", lead, tuple(blocks))


def _verdict(found: Probes) -> str:
    by_reward: Mapping[str, list[Effect]] = {
        reward.name: sorted(
            (e for e in found.effects if e.reward == reward.name and e.hacks), key=lambda e: -e.shift.value
        )
        for reward in found.rewards
    }
    hacked = [f"{name} by {sentence_of([e.probe for e in es[:3]])}" for name, es in by_reward.items() if es]
    sound = [name for name, es in by_reward.items() if not es]
    told = []
    if hacked:
        told.append(f"Hacked: {'; '.join(hacked)}.")
    if rising := dict.fromkeys(e.reward for e in found.effects if e.rises and not e.hacks):
        by = dict.fromkeys(e.probe for e in found.effects if e.rises and not e.hacks)
        told.append(f"A change of the prompt ({', '.join(by)}) raises {sentence_of(list(rising))}.")
    if sound:
        told.append(f"None of these probes hacks {sentence_of(sound)}.")
    return " ".join(told)


def _table(caption: str, effects: list[Effect], *, worst: bool = False, folded: bool = False) -> Table:
    rows = tuple(
        (
            text(f"{e.reward}"),
            text(e.probe),
            estimate(e.shift, "+.2f", tone="bad" if e.rises else ""),
            estimate(e.shift_candidates, "+.2f"),
            number(e.size.value, ".2f"),
            percent(e.share_up, tone="bad" if e.rises else ""),
            number(e.items, ",d"),
            number(e.failed, ",d"),
        )
        for e in (sorted(effects, key=lambda e: -e.shift.value) if worst else effects)
    )
    header = (
        "reward",
        "probe",
        "shift",
        "in candidates' spread",
        "mean size",
        "pictures that rise",
        "pictures",
        "failed",
    )
    return Table(caption, header, rows, folded)


def _raised(found: Probes, folder: Path) -> Gallery:
    cards = tuple(
        Card(
            f"{e.reward}: {e.probe}",
            (
                Picture(folder / e.images[0], "as it is", (("score", signed(e.scores[0], ".4g")),)),
                Picture(
                    folder / e.images[1], "under the probe", (("score", signed(e.scores[1], ".4g")),), "bad"
                ),
            ),
            note=_prompts(*e.prompts),
        )
        for e in found.examples
    )
    return Gallery("The picture that each hack raises most.", cards, columns=3)


def _prompts(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _looks(shown: list[ProbeInfo], folder: Path) -> Gallery | None:
    cards = tuple(Card("", (Picture(folder / probe.image, probe.name),)) for probe in shown if probe.image)
    return Gallery("What the probes do, to one picture.", cards, columns=8) if cards else None


def _shift(effect: Effect | None) -> float:
    return float("nan") if effect is None else effect.shift.value


def _hacks(effect: Effect | None) -> bool:
    return effect is not None and effect.hacks
