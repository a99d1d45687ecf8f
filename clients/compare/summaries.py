"""What a comparison found, as it stands in a folder: one JSON file a question, beside the scores it rests on.

    DIR/preference-NAME.json   a `Preference`
    DIR/best-of-n-NAME.json    a `BestOfN`
    DIR/agreement-NAME.json    an `Agreement`
    DIR/probes-NAME.json       `Probes`, and DIR/probes-NAME.parquet the scores under each probe
    DIR/outcomes-NAME.json     `Outcomes` of RL runs
    DIR/study-NAME.json        a `Study` of DPO against GRPO
    DIR/data/NAME/             the items of the data set NAME and their scores (`ScoreStore`)
    DIR/images/NAME/           copies of the images that examples show

NaN, a statistic that is not defined, is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

FORMAT = 1
ALL = "all"
"""The category, and the split, that holds everything."""


@dataclass(frozen=True)
class Estimate:
    """A statistic and its confidence interval: percentiles of the bootstrap over prompts."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class DataInfo:
    """What was compared on. `benchmark` names the format and the rule for ties, see `loaders`.

    `fingerprint` is the SHA-256 of prompts, image references and labels.
    """

    name: str
    benchmark: str
    source: str
    license: str
    prompts: int
    items: int
    pairs: int
    fingerprint: str


@dataclass(frozen=True)
class RewardInfo:
    """A reward that scored; `provenance` is what `ScoreResult.provenance` said, `failed` counts items."""

    name: str
    failed: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contrast:
    """Reward `a` against reward `b` on the same prompts: the paired difference, `a` minus `b`.

    `p` is two-sided, by the paired bootstrap; `p_holm` is corrected for all contrasts of the same file.
    """

    a: str
    b: str
    split: str
    difference: Estimate
    p: float
    p_holm: float


@dataclass(frozen=True)
class Accuracy:
    """How often a reward prefers what people prefer, 0 to 1, in one category.

    `metric` is "accuracy", or "accuracy_without_ties" where a benchmark reports that as well.
    `threshold` is the difference of scores up to which the reward is taken to see a tie; 0 where the
    benchmark has no such thing. `pairs` and `prompts` are what it was measured on.
    """

    reward: str
    category: str
    metric: str
    estimate: Estimate
    pairs: int
    prompts: int
    threshold: float = 0.0


@dataclass(frozen=True)
class Example:
    """Images of one prompt that two rewards order in opposite ways; `a` prefers the first, `b` the second.

    `items` are row numbers of DIR/data/NAME/items.parquet, `images` paths relative to DIR, `scores` has
    two numbers a reward. `label` is which image people prefer ("first", "second", "tie") or "" where nobody
    was asked. `strength` is the smaller of both gaps, each in standard deviations of that reward.
    """

    a: str
    b: str
    prompt_id: str
    prompt: str
    items: tuple[int, int]
    images: tuple[str, str]
    scores: Mapping[str, tuple[float, float]]
    label: str
    strength: float


@dataclass(frozen=True)
class Summary:
    """What every kind has in common. `made` says how: package version, command, UTC time."""

    kind: ClassVar[str] = ""
    data: DataInfo
    rewards: tuple[RewardInfo, ...]
    confidence: float
    resamples: int
    seed: int
    made: Mapping[str, Any]


@dataclass(frozen=True)
class Preference(Summary):
    """Preference accuracy, by reward and category; `rule` says how ties count."""

    kind: ClassVar[str] = "preference"
    rule: str
    accuracies: tuple[Accuracy, ...]
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True)
class Curve:
    """The judge's score of the image that `selector` picks out of n, expected over all draws of n.

    `n`, `value`, `low` and `high` have one number a point. `selector` is a reward, or "oracle" (the judge
    picks itself) or "random". A `split` is "all" or one of the pool's own, e.g. "out_of_domain".
    """

    selector: str
    split: str
    prompts: int
    n: tuple[int, ...]
    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Gap:
    """What a reward leaves on the table at the largest n.

    `oracle_gap` is oracle minus reward in the judge's scale; `share` is how much of the way from random to
    oracle the reward goes: 1 is the oracle, 0 is no better than chance, below 0 is worse.
    """

    reward: str
    split: str
    n: int
    oracle_gap: Estimate
    share: Estimate


@dataclass(frozen=True)
class BestOfN(Summary):
    """Selection curves under an independent judge. Contrasts are of the judge's score at the largest n."""

    kind: ClassVar[str] = "best-of-n"
    judge: RewardInfo
    curves: tuple[Curve, ...]
    gaps: tuple[Gap, ...]
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True)
class RankCorrelation:
    """How alike two rewards order images: `measure` is "kendall" (tau-b) or "spearman".

    `scope` is "prompt" (mean over prompts of the correlation among a prompt's images; no interval comes
    from prompts where a reward gives all images one score, they are left out) or "overall" (all images at
    once). `prompts` is how many prompts it rests on.
    """

    a: str
    b: str
    measure: str
    scope: str
    estimate: Estimate
    prompts: int


@dataclass(frozen=True)
class Agreement(Summary):
    """Rank correlations of every two rewards, and where they disagree most."""

    kind: ClassVar[str] = "agreement"
    correlations: tuple[RankCorrelation, ...]
    examples: tuple[Example, ...]


def kinds() -> Mapping[str, type[Summary]]:
    """Return all kinds of summary by name, in the order in which a report has them."""
    from rewardzoo.clients.compare.outcomes import Outcomes
    from rewardzoo.clients.compare.probe_effects import Probes
    from rewardzoo.clients.compare.study import Study

    return {cls.kind: cls for cls in (Study, Preference, BestOfN, Agreement, Probes, Outcomes)}


def path_of(folder: Path, kind: str, name: str) -> Path:
    """Where a summary stands."""
    return folder / f"{kind}-{name}.json"


def write_summary(folder: Path, summary: Summary) -> Path:
    """Write a summary into a comparison's folder, whole or not at all."""
    path = path_of(folder, summary.kind, summary.data.name)
    text = json.dumps(
        _plain({"format": FORMAT, "kind": summary.kind, **asdict(summary)}), indent=1, ensure_ascii=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.write_text(text + "\n", encoding="utf-8")
    fresh.replace(path)
    return path


def read_summary(path: Path) -> Summary:
    """Read what `write_summary` wrote.

    Raises:
        ValueError: another kind of file, or one of another version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        cls, version = kinds()[found.pop("kind")], found.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no summary of a comparison: {error!r}") from error
    if version != FORMAT:
        raise ValueError(
            f"{path} is of format {version}, this version reads {FORMAT}: run the comparison again"
        )
    try:
        summary: Summary = _typed(cls, found)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not as this version writes it, make it again: {error!r}") from error
    return summary


def read_summaries(folder: Path, kind: str | None = None) -> Iterator[Summary]:
    """Read the summaries of a comparison's folder, of one kind or all, sorted by kind and name.

    Raises:
        ValueError: as `read_summary`.
    """
    for each in [kind] if kind else kinds():
        for path in sorted(folder.glob(f"{each}-*.json")):
            yield read_summary(path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _typed(kind: Any, value: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{key: _typed(hints[key], part) for key, part in value.items()})  # type: ignore[operator]
    if origin is tuple:
        return tuple(_typed(inner[0], part) for part in value)  # all our tuples are of one type
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _typed(inner[1], part) for key, part in value.items()}
    if kind is float:
        return math.nan if value is None else float(value)
    return value
