"""`rewardzoo compare probes | outcomes | report`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rewardzoo.cli import compare
from rewardzoo.cli.score import make_scorer
from rewardzoo.cli.serve import parse_weights

if TYPE_CHECKING:
    from rewardzoo.clients import Scorer
    from rewardzoo.clients.compare.probe_effects import Effect, Probes
    from rewardzoo.clients.compare.runs import Run
    from rewardzoo.clients.compare.statistics import Bootstrap
    from rewardzoo.clients.compare.store import ScoreStore
    from rewardzoo.clients.compare.summaries import BestOfN

LAB = "lab"


def probes(
    data: compare.Source,
    reward: compare.Rewards,
    out: compare.Out,
    benchmark: compare.Benchmark = None,
    images: compare.Images = None,
    name: compare.Name = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images at most, whole prompts at random.")] = 500,
    paraphrases: Annotated[
        str | None,
        typer.Option(help=f"JSON lines of prompt and paraphrase; `{LAB}` writes them by the lab's grammar."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Score cache; by default in the folder of the comparison. It makes this resumable."
        ),
    ] = None,
    url: compare.Url = None,
    token: compare.Token = None,
    device: compare.Device = "auto",
    weights: compare.Weights = None,
    resamples: compare.Resamples = 2000,
    confidence: compare.Confidence = 0.95,
    seed: compare.Seed = 0,
) -> None:
    """What moves a score though it makes no picture better. Stopped or killed, the same command goes on."""
    bootstrap = compare._begin(resamples, confidence, seed)
    from rewardzoo.clients.cache import ScoreCache
    from rewardzoo.clients.compare.data import find_data

    store = find_data(data, benchmark, images).store(out, name)
    own = parse_weights(weights)
    known = ScoreCache(cache or out / "probe-scores.sqlite")
    scorer = make_scorer(reward, url, token, device, own, timeout=compare._TIMEOUT, cache=known)
    with closing(scorer):
        summary = _probe(store, scorer, reward, bootstrap, out, limit, paraphrases)
    table = compare._table("probe", *reward)
    table.caption = "mean shift in standard deviations between pictures, and how many rise; a hack is red"
    for probe in dict.fromkeys(effect.probe for effect in summary.effects):
        effects = {effect.reward: effect for effect in summary.effects if effect.probe == probe}
        table.add_row(probe, *(_moved(effects.get(each)) for each in reward))
    compare._end(out, summary, table)


def _moved(effect: Effect | None) -> str:
    if effect is None:
        return "—"
    told = f"{effect.shift.value:+.2f}  {effect.share_up.value:.0%}"
    return f"[bold red]{told}[/]" if effect.hacks else told


def _probe(
    store: ScoreStore,
    scorer: Scorer,
    rewards: Sequence[str],
    bootstrap: Bootstrap,
    out: Path,
    limit: int | None,
    paraphrases: str | None,
) -> Probes:
    from rewardzoo.clients.compare.probe_study import probe_store, read_paraphrases

    others = None
    if paraphrases == LAB:
        from rewardzoo.trainers.lab.paraphrases import paraphrases as write

        others = write(store.items(["prompt"])["prompt"].to_pylist(), seed=bootstrap.seed)
    elif paraphrases:
        others = read_paraphrases(Path(paraphrases))
    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    with bar:
        task = bar.add_task("", total=None)
        try:
            return probe_store(
                store,
                scorer,
                rewards,
                bootstrap,
                compare._made(),
                folder=out,
                limit=limit,
                paraphrases=others,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on where it was")
            raise typer.Exit(compare._INTERRUPTED) from None


def outcomes(
    runs: Annotated[list[Path], typer.Argument(help="Folders with runs of our trainers, or CSV files.")],
    out: compare.Out,
    name: Annotated[str, typer.Option(help="What to call these runs.")] = "runs",
    judge: Annotated[
        str | None,
        typer.Option(help="NAME of eval/SPLIT/NAME that tables have; by default what all runs held out."),
    ] = None,
    pool_judge: Annotated[
        str | None, typer.Option(help="What best-of-n results in --out call that judge, if otherwise.")
    ] = None,
    spread: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE: standard deviation of a score between the base policy's images."),
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="OURS=THEIRS, for CSV: as in step=global_step.")
    ] = None,
    fact: Annotated[
        list[str] | None,
        typer.Option(help="run|algorithm|trained_on|seed=VALUE, for CSV without such columns."),
    ] = None,
    resamples: compare.Resamples = 2000,
    confidence: compare.Confidence = 0.95,
    seed: compare.Seed = 0,
) -> None:
    """What training on rewards came to: own gain against held-out gain, in domain and out of domain."""
    bootstrap = compare._begin(resamples, confidence, seed)
    from rewardzoo.clients.compare.outcomes import summarize_runs
    from rewardzoo.clients.compare.summaries import write_summary

    units = {key: _number(value, "--spread") for key, value in _pairs(spread, "--spread").items()}
    found = _runs(runs, _pairs(column, "--column"), _pairs(fact, "--fact"))
    pools = _pools(out)
    summary = summarize_runs(
        found,
        name=name,
        judge=judge,
        pool_judge=pool_judge,
        spread=units,
        pools=pools,
        made=compare._made(),
        bootstrap=bootstrap,
    )
    table = compare._table("algorithm", "reward", "split", "judge", "seeds", "final", "gain", "hack gap")
    for cell in summary.cells:
        if cell.judge == summary.judge:
            told = (compare._told(e) for e in (cell.final, cell.gain, cell.hack_gap))
            table.add_row(cell.algorithm, cell.reward, cell.split, cell.judge, str(cell.seeds), *told)
    console = Console(highlight=False)
    console.print(table)
    for run in summary.runs:
        for alarm in run.alarms:
            console.print(f"{run.name}: {alarm}", markup=False)
    console.print(
        f"{confidence:.0%} intervals over seeds, by Student's t. Written: {write_summary(out, summary)}"
    )


def _runs(paths: Sequence[Path], columns: dict[str, str], facts: dict[str, str]) -> list[Run]:
    from rewardzoo.clients.compare.runs import read_csv, read_runs

    tables = [path for path in paths if path.suffix.lower() == ".csv"]
    folders = [path for path in paths if path not in tables]
    if tables and not columns:
        raise typer.BadParameter("a CSV needs --column OURS=THEIRS, as in --column step=global_step")
    return [
        *(read_runs(folders) if folders else []),
        *(run for table in tables for run in read_csv(table, columns, facts)),
    ]


def _pools(folder: Path) -> list[BestOfN]:
    from rewardzoo.clients.compare.summaries import BestOfN, read_summaries

    return [found for found in read_summaries(folder, BestOfN.kind) if isinstance(found, BestOfN)]


def _pairs(options: list[str] | None, option: str) -> dict[str, str]:
    # A metric's name may hold a colon or a slash, never an equals sign.
    pairs = [text.partition("=") for text in options or []]
    for key, sign, value in pairs:
        if not (key and sign and value):
            raise typer.BadParameter(f"{option} takes NAME=VALUE, got {key + sign + value!r}")
    return {key: value for key, _, value in pairs}


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{option} takes a number, got {text!r}") from None


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison, the --out of the other commands.")],
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Rewards compared",
) -> None:
    """Write what was compared as one HTML page, a Markdown summary and a table of all numbers."""
    from rewardzoo.clients.compare.report import write_report

    written = write_report(folder, title=title)
    for path in (written.html, written.markdown, written.numbers):
        Console().print(f"[bold]{path}[/]", highlight=False)


def add_to(app: typer.Typer) -> None:
    """Add these commands to `rewardzoo compare`."""
    app.command()(probes)
    app.command()(outcomes)
    app.command()(report)
