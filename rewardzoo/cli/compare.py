"""`rewardzoo compare`: rewards against each other, on preferences, as selectors, and in agreement."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rewardzoo.cli.score import make_scorer
from rewardzoo.cli.serve import parse_weights
from rewardzoo.errors import require

if TYPE_CHECKING:
    from rewardzoo.clients.compare.statistics import Bootstrap
    from rewardzoo.clients.compare.store import ScoreStore
    from rewardzoo.clients.compare.summaries import Accuracy, Contrast, Estimate, Summary

compare_app = typer.Typer(help="Compare rewards: preferences, best-of-N, agreement.", no_args_is_help=True)

# A chunk is one call, and large rewards are slow.
_TIMEOUT = 1800.0
_INTERRUPTED = 130

Source = Annotated[str, typer.Argument(help="A path, hf://OWNER/NAME, or a benchmark's name.")]
Rewards = Annotated[list[str], typer.Option("--reward", help="Reward to compare; may be repeated.")]
Out = Annotated[Path, typer.Option(help="Folder of the comparison; several may share one.")]
Benchmark = Annotated[
    str | None, typer.Option(help="Format and rule for ties; by default told from the columns.")
]
Images = Annotated[Path | None, typer.Option(help="Folder of the images, where not beside the table.")]
Name = Annotated[str | None, typer.Option(help="What to call the data set; by default as its file.")]
Url = Annotated[str | None, typer.Option(help="Score on this server; else in this process.")]
Token = Annotated[str | None, typer.Option(envvar="REWARDZOO_TOKEN", help="The server's token.")]
Device = Annotated[str, typer.Option(help="Device to score on in this process.")]
Weights = Annotated[list[str] | None, typer.Option(help="NAME=PATH, in this process.")]
Resamples = Annotated[int, typer.Option(help="Resamples of the bootstrap.")]
Confidence = Annotated[float, typer.Option(help="Confidence of the intervals.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.")]


@compare_app.command()
def preference(
    data: Source,
    reward: Rewards,
    out: Out,
    benchmark: Benchmark = None,
    images: Images = None,
    name: Name = None,
    url: Url = None,
    token: Token = None,
    device: Device = "auto",
    weights: Weights = None,
    resamples: Resamples = 2000,
    confidence: Confidence = 0.95,
    seed: Seed = 0,
) -> None:
    """How often rewards prefer what people prefer. Stopped or killed, the same command goes on."""
    bootstrap = _begin(resamples, confidence, seed)
    from rewardzoo.clients.compare.data import find_data
    from rewardzoo.clients.compare.preference import preference as measure
    from rewardzoo.clients.compare.ties import ACCURACY

    store = find_data(data, benchmark, images).store(out, name)
    _score(store, reward, url, token, device, weights)
    summary = measure(store, reward, bootstrap, _made())
    rows: dict[tuple[str, str], list[Accuracy]] = {}
    for found in summary.accuracies:
        rows.setdefault((found.category, found.metric), []).append(found)
    table = _table("category", *(r.name for r in summary.rewards), "pairs", "prompts")
    for (category, metric), by_reward in rows.items():
        pairs = sorted({f"{found.pairs:,}" for found in by_reward})  # those without ties differ
        table.add_row(
            category if metric == ACCURACY else f"{category}, without ties",
            *(_told(found.estimate, percent=True) for found in by_reward),
            " ".join(pairs),
            f"{by_reward[0].prompts:,}",
        )
    _end(out, summary, table, summary.contrasts, percent=True)


@compare_app.command("best-of-n")
def best_of_n(
    data: Annotated[
        list[str], typer.Argument(metavar="[SPLIT=]POOL...", help="Pools of candidates: tables or folders.")
    ],
    reward: Rewards,
    out: Out,
    judge: Annotated[str | None, typer.Option(help="Reward that judges the picks.")] = None,
    judge_file: Annotated[
        list[str] | None,
        typer.Option(metavar="[SPLIT=]FILE", help="Results of GenEval, T2I-CompBench, or image and score."),
    ] = None,
    images: Images = None,
    name: Name = None,
    url: Url = None,
    token: Token = None,
    device: Device = "auto",
    weights: Weights = None,
    resamples: Resamples = 2000,
    confidence: Confidence = 0.95,
    seed: Seed = 0,
) -> None:
    """How good the image is that a reward picks out of n, by a judge. Stopped or killed, it goes on.

    Without --judge or --judge-file the pool's own column `rating` judges.
    """
    bootstrap = _begin(resamples, confidence, seed)
    from rewardzoo.clients.compare.best_of_n import best_of_n as measure
    from rewardzoo.clients.compare.data import find_data, join_pools
    from rewardzoo.clients.compare.judges import judge_by_files, judge_by_ratings

    if judge and judge_file:
        raise typer.BadParameter("give --judge or --judge-file, not both")
    if judge in reward:
        raise typer.BadParameter(f"{judge} cannot judge itself: name another --judge")
    pools = {split: find_data(source, "pool", images) for split, source in _by_split(data).items()}
    found = next(iter(pools.values())) if len(pools) == 1 else join_pools(pools)
    store = found.store(out, name or (None if len(pools) == 1 else "-".join(pools)))
    _score(store, [*reward, *([judge] if judge else [])], url, token, device, weights)
    if judge:
        judged_by, judged = store.reward(judge), store.scores(judge).astype(float)
    elif judge_file:
        files = {split: Path(file) for split, file in _by_split(judge_file).items()}
        judged_by, judged = judge_by_files(store, files)
    else:
        judged_by, judged = judge_by_ratings(store)
    summary = measure(store, reward, judged_by, judged, bootstrap, _made())
    table = _table("reward", "split", "n", f"picked, by {judged_by.name}", "oracle gap", "random to oracle")
    picked = {(c.selector, c.split): c.value[-1] for c in summary.curves}
    for gap in summary.gaps:
        value = f"{picked[gap.reward, gap.split]:.4f}"
        table.add_row(gap.reward, gap.split, str(gap.n), value, _told(gap.oracle_gap), _told(gap.share, True))
    _end(out, summary, table, summary.contrasts)


@compare_app.command()
def agreement(
    data: Source,
    reward: Rewards,
    out: Out,
    benchmark: Benchmark = None,
    images: Images = None,
    name: Name = None,
    url: Url = None,
    token: Token = None,
    device: Device = "auto",
    weights: Weights = None,
    examples: Annotated[int, typer.Option(help="Disagreements to show of every two rewards.")] = 6,
    resamples: Resamples = 2000,
    confidence: Confidence = 0.95,
    seed: Seed = 0,
) -> None:
    """How alike rewards order images, and where they disagree. Stopped or killed, it goes on."""
    bootstrap = _begin(resamples, confidence, seed)
    from rewardzoo.clients.compare.agreement import agreement as measure
    from rewardzoo.clients.compare.data import find_data

    store = find_data(data, benchmark, images).store(out, name)
    _score(store, reward, url, token, device, weights)
    summary = measure(store, reward, bootstrap, _made(), folder=out, examples=examples)
    table = _table("rewards", "measure", "over", "correlation", "prompts")
    for found in summary.correlations:
        pair = f"{found.a}, {found.b}"
        table.add_row(pair, found.measure, found.scope, _told(found.estimate), f"{found.prompts:,}")
    _end(out, summary, table)


def _begin(resamples: int, confidence: float, seed: int) -> Bootstrap:
    for module in ("pyarrow", "scipy"):
        require(module, extra="compare")
    from rewardzoo.clients.compare.statistics import Bootstrap

    return Bootstrap(resamples, confidence, seed)


def _by_split(values: Sequence[str]) -> dict[str, str]:
    """Read `SPLIT=PATH`; a single value may be a path alone, and so may one that has a "/" before its "="."""
    found: dict[str, str] = {}
    for value in values:
        split, equals, path = value.partition("=")
        if not equals or "/" in split:
            split, path = "", value
        if split in found or (not split and len(values) > 1):
            raise typer.BadParameter(f"of several, each needs a split of its own: SPLIT=PATH, got {value!r}")
        found[split] = path
    return found


def _score(
    store: ScoreStore,
    rewards: list[str],
    url: str | None,
    token: str | None,
    device: str,
    weights: list[str] | None,
) -> None:
    from rewardzoo.clients.compare.scoring import score_all

    info, console = store.info, Console(stderr=True, highlight=False)
    console.print(
        f"{info.name} ({info.benchmark}): {info.prompts:,} prompts, {info.items:,} images, {info.pairs:,} "
        f"judged pairs; licence: {info.license}"
    )
    todo = sorted({name for names in store.missing(rewards).values() for name in names})
    if not todo:
        console.print("all of it was scored before")
        return
    bar = Progress(
        TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    own = {name: path for name, path in parse_weights(weights).items() if name in todo}
    with closing(make_scorer(todo, url, token, device, own, timeout=_TIMEOUT)) as scorer, bar:
        task = bar.add_task("")
        try:
            score_all(
                store, scorer, rewards, lambda done, total: bar.update(task, completed=done, total=total)
            )
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on where it was")
            raise typer.Exit(_INTERRUPTED) from None


def _made() -> Mapping[str, Any]:
    from rewardzoo import __version__

    words = ["rewardzoo", *sys.argv[1:]]
    for place, word in enumerate(words):
        if word.startswith("--token="):
            words[place] = "--token=…"
        elif place and words[place - 1] == "--token":
            words[place] = "…"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"rewardzoo": __version__, "command": shlex.join(words), "utc": now}


def _end(
    out: Path, summary: Summary, table: Table, contrasts: Sequence[Contrast] = (), percent: bool = False
) -> None:
    from rewardzoo.clients.compare.summaries import write_summary

    console = Console()
    console.print(table)
    if contrasts:
        differences = _table("difference", "split", "", "p (Holm)")
        for c in contrasts:
            differences.add_row(f"{c.a} - {c.b}", c.split, _told(c.difference, percent), f"{c.p_holm:.4f}")
        console.print(differences)
    console.print(
        f"{summary.confidence:.0%} intervals: {summary.resamples:,} bootstrap resamples over prompts. "
        f"Written: {write_summary(out, summary)}",
        highlight=False,
    )


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")  # a name that is cut off is no name
    return table


def _told(estimate: Estimate, percent: bool = False) -> str:
    def number(value: float) -> str:
        return "—" if value != value else f"{100 * value:.1f}%" if percent else f"{value:.4f}"

    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"
