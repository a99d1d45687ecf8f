from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from rewardzoo.clients.compare import agreement as module
from rewardzoo.clients.compare.agreement import agreement
from rewardzoo.clients.compare.groups import SECOND, Group
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.clients.compare.summaries import Agreement, RankCorrelation

from .conftest import MakeStore, keep, write_red

FEW = Bootstrap(200)


def found(summary: Agreement, measure: str, scope: str) -> RankCorrelation:
    (one,) = [c for c in summary.correlations if (c.measure, c.scope) == (measure, scope)]
    return one


def test_correlations_are_scipys_within_prompts_and_over_all(make_store: MakeStore, tmp_path: Path) -> None:
    sizes = [4, 3, 4, 1, 5, 2]
    groups = [Group(f"{p}", "p", tuple(f"{p}-{i}" for i in range(n))) for p, n in enumerate(sizes)]
    store = make_store(groups)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, (2, sum(sizes))).astype(float)
    a[:4] = 1  # a prompt without an order
    b[5] = np.nan
    keep(store, a=a, b=b)
    summary = agreement(store, ["a", "b"], FEW, {}, folder=tmp_path)
    known = ~np.isnan(b)
    cuts = np.cumsum(sizes)[:-1]
    pools = [
        (x[~np.isnan(y)], y[~np.isnan(y)]) for x, y in zip(np.split(a, cuts), np.split(b, cuts), strict=True)
    ]
    for measure, correlate in (("kendall", stats.kendalltau), ("spearman", stats.spearmanr)):
        each = [correlate(x, y).statistic for x, y in pools if len(x) > 1 and np.ptp(x) and np.ptp(y)]
        inside = found(summary, measure, "prompt")
        assert inside.estimate.value == pytest.approx(np.mean(each))
        assert inside.prompts == len(each)
        overall = found(summary, measure, "overall")
        assert overall.estimate.value == pytest.approx(correlate(a[known], b[known]).statistic)
        assert overall.estimate.low < overall.estimate.value < overall.estimate.high


def test_too_many_images_have_no_interval_over_all(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store([Group(f"{p}", "p", (f"{p}a", f"{p}b")) for p in range(5)])
    keep(store, a=np.arange(10), b=np.arange(10)[::-1])
    monkeypatch.setattr(module, "OVERALL_ITEMS", 9)
    overall = found(agreement(store, ["a", "b"], FEW, {}, folder=tmp_path), "kendall", "overall")
    assert overall.estimate.value == pytest.approx(-1)
    assert np.isnan(overall.estimate.low)


def test_the_surest_disagreements_are_shown_with_their_pictures(
    make_store: MakeStore, tmp_path: Path
) -> None:
    for name, red in (("x.png", 10), ("y.png", 20), ("u.png", 30), ("v.png", 40)):
        write_red(tmp_path / name, red)
    groups = [
        Group("weak", "a weak one", ("u.png", "v.png")),
        Group("strong", "a strong one", ("x.png", "y.png"), ((1, 0, SECOND),)),
        Group("none", "they agree", ("x.png", "y.png")),
    ]
    store = make_store(groups)
    keep(store, a=[1, 1.1, 9, 1, 0, 5], b=[3, 2.9, 1, 8, 0, 5])
    summary = agreement(store, ["a", "b"], FEW, {}, folder=tmp_path / "out")
    strong, weak = summary.examples
    assert (strong.prompt, strong.items, strong.label) == ("a strong one", (2, 3), "first")
    assert strong.scores == {"a": (9, 1), "b": (1, 8)}
    assert (weak.items, weak.label) == ((1, 0), "")  # the first is the one that `a` prefers
    assert strong.strength > weak.strength
    pictures = [Image.open(tmp_path / "out" / image) for image in strong.images]
    assert [picture.getpixel((0, 0)) for picture in pictures] == [(10, 0, 0), (20, 0, 0)]
    assert len(agreement(store, ["a", "b"], FEW, {}, folder=tmp_path, examples=1).examples) == 1


def test_an_example_whose_image_is_gone_has_none(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store([Group("0", "p", ("gone.png", "away.png"))])
    keep(store, a=[0, 1], b=[1, 0])
    (example,) = agreement(store, ["a", "b"], FEW, {}, folder=tmp_path).examples
    assert example.images == ("", "")


def test_one_reward_cannot_agree(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store([Group("0", "p", ("a", "b"))])
    with pytest.raises(ValueError, match="name two or more"):
        agreement(store, ["a", "a"], FEW, {}, folder=tmp_path)
