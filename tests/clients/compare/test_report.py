"""The report of a comparison that has everything, written without scoring anything."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from rewardzoo.clients.compare.findings import Scaled, findings, scaling, versus
from rewardzoo.clients.compare.outcomes import Outcomes, summarize_runs
from rewardzoo.clients.compare.probe_effects import Effect, ProbeExample, ProbeInfo, Probes, Spread
from rewardzoo.clients.compare.report import plots, write_report
from rewardzoo.clients.compare.runs import Run
from rewardzoo.clients.compare.search_saving import search_point
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.clients.compare.study import Recipe, Study
from rewardzoo.clients.compare.summaries import (
    Accuracy,
    Agreement,
    BestOfN,
    Contrast,
    Curve,
    DataInfo,
    Estimate,
    Example,
    Gap,
    Preference,
    RankCorrelation,
    RewardInfo,
    write_summary,
)

REWARDS = ("hpsv2:v2.1", "imagereward:v1.0", "pickscore:v1", "clipscore:openai-l14", "vqascore:qwen2.5-vl-7b")
HOSTILE = "<script>alert('x')</script> a | b $x$ {{ 7 * 7 }} </style>"
SPLITS = ("in_domain", "out_of_domain")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def around(value: float, half: float = 0.03) -> Estimate:
    return Estimate(value, value - half, value + half)


def common(name: str, rewards: tuple[str, ...] = REWARDS) -> dict[str, Any]:
    said = {"weights_sha256": "ab" * 32, "recipe": "upstream", "dtype": "float32", "note": HOSTILE}
    return {
        "data": DataInfo(name, "plain", "pairs.jsonl", "CC-BY-4.0", 200, 1600, 800, "c0ffee" * 10),
        "rewards": tuple(RewardInfo(reward, 0, said) for reward in rewards),
        "confidence": 0.95,
        "resamples": 2000,
        "seed": 0,
        "made": {
            "command": f"rewardzoo compare --out x {HOSTILE}",
            "time": "2026-01-01 00:00",
            "version": "1",
        },
    }


def preference_of(rng: np.random.Generator) -> Preference:
    accuracies = [
        Accuracy(reward, category, "accuracy", around(0.6 + 0.07 * i + rng.normal(0, 0.02)), 800, 200)
        for i, reward in enumerate(REWARDS)
        for category in ("all", "photo", "anime", "concept-art", "paintings")
    ]
    pairs = [(a, b) for i, a in enumerate(REWARDS) for b in REWARDS[:i]]
    contrasts = tuple(Contrast(a, b, "all", around(0.07), 0.001, 0.01) for a, b in pairs)
    return Preference(
        **common("hpdv2"), rule="Ties count half.", accuracies=tuple(accuracies), contrasts=contrasts
    )


def best_of_n_of() -> BestOfN:
    curves, gaps = [], []
    n = (1, 2, 4, 8, 16)
    for split in SPLITS:
        for i, selector in enumerate((*REWARDS, "oracle", "random")):
            slope = {"oracle": 0.1, "random": 0.0}.get(selector, 0.015 * (i + 1))
            value = tuple(0.5 + slope * float(np.log2(k)) for k in n)
            low, high = tuple(v - 0.02 for v in value), tuple(v + 0.02 for v in value)
            curves.append(Curve(selector, split, 100, n, value, low, high))
        gaps += [
            Gap(r, split, 16, around(0.3 - 0.05 * i), around(0.2 + 0.15 * i)) for i, r in enumerate(REWARDS)
        ]
    return BestOfN(
        **common("pool"),
        judge=RewardInfo("lab:exact", 0, {"recipe": "exact"}),
        curves=tuple(curves),
        gaps=tuple(gaps),
        contrasts=(),
    )


def agreement_of(images: tuple[str, str]) -> Agreement:
    pairs = [(a, b) for i, a in enumerate(REWARDS) for b in REWARDS[:i]]
    correlations = tuple(
        RankCorrelation(a, b, measure, scope, around(0.1 * k - 0.3), 200)
        for k, (a, b) in enumerate(pairs)
        for measure in ("kendall", "spearman")
        for scope in ("prompt", "overall")
    )
    example = Example(
        REWARDS[0],
        REWARDS[1],
        "p",
        f"a red circle left of two blue squares, on a plain background {HOSTILE}",
        (0, 1),
        images,
        {REWARDS[0]: (0.31, 0.25), REWARDS[1]: (-0.4, 1.2)},
        "second",
        1.4,
    )
    return Agreement(**common("pool"), correlations=correlations, examples=(example,) * 5)


def probes_of(images: tuple[str, str], rng: np.random.Generator) -> Probes:
    names = ["JPEG 90", "JPEG 20", "noise 24", "blur 3%", "crop 75%", "saturation 1.6", "text: the prompt"]
    infos = [ProbeInfo(name, name, "image", "same", images[1]) for name in names]
    infos += [ProbeInfo(n, n, "prompt", "lower") for n in ("word order", "unrelated prompt")]
    effects = []
    for info in infos:
        for reward in REWARDS:
            shift = float(rng.normal(-0.4, 0.6))
            up = around(float(np.clip(0.5 + shift / 2, 0.05, 0.95)))
            effects.append(
                Effect(
                    info.name,
                    reward,
                    info.changes,
                    1600,
                    200,
                    0,
                    around(shift),
                    around(2 * shift),
                    around(abs(shift)),
                    up,
                )
            )
    example = ProbeExample("saturation 1.6", REWARDS[0], 3, (HOSTILE, HOSTILE), images, (0.2, 0.4), 1.1)
    spreads = tuple(Spread(reward, 0.05, 0.02) for reward in REWARDS)
    return Probes(
        **common("pool"),
        probes=tuple(infos),
        spreads=spreads,
        effects=tuple(effects),
        examples=(example,) * 3,
    )


def runs_of(rng: np.random.Generator) -> list[Run]:
    steps = np.arange(0, 401, 10.0)
    runs = []
    for i, reward in enumerate(REWARDS[:4]):
        for algorithm in ("grpo", "dpo"):
            for seed in range(3):
                metrics = {"reward": 0.01 * steps + rng.normal(0, 0.1, len(steps))}
                for k, split in enumerate(SPLITS):
                    turn = 0.0005 * (i - 1.5 * k) * steps
                    fall = -0.000004 * np.square(steps) * (i == 0) * (algorithm == "grpo") * (k + 1)
                    metrics[f"eval/{split}/lab:exact"] = 0.4 + turn + fall + rng.normal(0, 0.01, len(steps))
                    metrics[f"eval_std/{split}/lab:exact"] = np.full(len(steps), 0.3)
                    metrics[f"eval/{split}/{reward}"] = (
                        0.2 + 0.0003 * steps + rng.normal(0, 0.005, len(steps))
                    )
                    metrics[f"eval_std/{split}/{reward}"] = np.full(len(steps), 0.05)
                name = f"{algorithm}-{reward}-{seed}"
                runs.append(Run(name, algorithm, {reward: 1.0}, ("lab:exact",), seed, name, steps, metrics))
    return runs


def study_of(runs: list[Run], outcomes: Outcomes, rng: np.random.Generator) -> Study:
    """A study whose axes have the same runs at each value, and whose search is capped on one split."""
    on_one = [run for run in runs if run.trained_on.keys() == {REWARDS[0]} and run.seed == 0]
    values = {"candidates per prompt": (4, 8, 16), "prompts": (16, 4096), "rounds": (1, 4, 16)}
    scaled = [
        Scaled(axis, value, run)
        for axis, of_axis in values.items()
        for value in of_axis
        for run in on_one
        if axis != "rounds" or run.algorithm == "dpo"
    ]
    points, of_axes = scaling(scaled, "lab:exact", 200, 0.95)
    worth = np.tile([0.3, 0.4, 0.5, 0.55], (100, 1))
    search = tuple(
        search_point(split, 4, (rng.random(100) < share).astype(float), drawn, worth, Bootstrap(200))
        for split, share, drawn in zip(
            SPLITS, (0.5, 0.9), (np.full(100, 1.7), np.full(100, 2.2)), strict=True
        )
    )
    compared = versus(outcomes, 400)
    return Study(
        **common("lab", REWARDS[:4]),
        judge="lab:exact",
        outcomes="lab",
        pool="pool",
        recipes=tuple(Recipe(reward, f"ranks pictures {HOSTILE}") for reward in REWARDS[:4]),
        findings=findings(outcomes, compared, of_axes, search),
        versus=compared,
        scaling=points,
        search=search,
        search_names=("parm:mini", "orm:mini"),
        left_out=("what was not shipped.",),
        settings={"GRPO": "28 steps of 128 images", "changed": "nothing"},
        minutes=58.3,
        core_minutes=112.0,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with every kind of summary."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    paths = ("images/a.png", "images/b.png")
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / path)
    pool = best_of_n_of()
    runs = runs_of(rng)
    outcomes = summarize_runs(runs, name="lab", pools=[pool], made=common("")["made"])
    study = study_of(runs, outcomes, rng)
    for summary in (preference_of(rng), pool, agreement_of(paths), probes_of(paths, rng), outcomes, study):
        write_summary(folder, summary)
    write_report(folder, title=f"Rewards {HOSTILE}")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


def test_every_kind_of_summary_has_its_section(page: str) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "At a glance",
        "The paper&#39;s claims",
        "Preference accuracy: hpdv2",
        "Best of n: pool",
        "Agreement: pool",
        "Probes: pool",
        "RL outcomes: lab",
        "What it rests on",
    ]


def test_a_section_is_there_only_where_something_was_measured(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "preference-hpdv2.json", tmp_path)
    page = write_report(tmp_path).html.read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "At a glance",
        "Preference accuracy: hpdv2",
        "What it rests on",
    ]


def test_nothing_that_users_wrote_becomes_markup(page: str) -> None:
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert page.count("</style>") == 1
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)") >= 5
    assert "{{ 7 * 7 }}" in page


def test_the_page_needs_no_other_file_and_no_network(page: str) -> None:
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sources
    assert {re.match(r"(data:image/(svg\+xml|webp)|#)", source)[0] for source in sources if source} == {  # type: ignore[index]
        "data:image/svg+xml",
        "data:image/webp",
        "#",
    }
    assert "default-src 'none'" in page


def test_the_markdown_has_the_tables_and_escapes_what_users_wrote(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert any(line.startswith("| hpsv2:v2.1 |") for line in rows)
    assert "<script>" not in re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    for header, line in pairwise(rows):
        if line.startswith("|---"):
            assert header.count("|") == line.count("|")


def test_the_table_of_numbers_has_every_estimate(folder: Path) -> None:
    table = parquet.read_table(folder / "report.parquet").to_pylist()
    counted = {kind: sum(row["kind"] == kind for row in table) for kind in {row["kind"] for row in table}}
    # 9 probes and 5 rewards, 4 statistics each; 5 rewards and 5 categories beside 10 contrasts.
    assert counted["probes"] == 180
    assert counted["preference"] == 35
    accuracy = next(row for row in table if row["kind"] == "preference")
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]


def test_the_papers_table_has_algorithms_and_best_of_4_on_both_splits(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    header = next(line for line in text.splitlines() if "DPO, in domain" in line)
    for column in ("DPO", "GRPO", "best of 4"):
        for split in ("in domain", "out of domain"):
            assert f"{column}, {split}" in header
    (row,) = [line for line in text.splitlines() if line.startswith("| base policy")]
    assert row.count("0.4") >= 4


def test_a_study_says_of_each_claim_what_was_found(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    part = text[text.index("## The paper") : text.index("## Preference accuracy")]
    assert "Left out: what was not shipped." in part
    assert "It took 58 minutes" in part
    claims = [line for line in part.splitlines() if "agrees" in line or "undecided" in line]
    assert any(line.startswith("| DPO is better than GRPO in domain. |") for line in claims)
    # Two algorithms, two splits, three axes of which one is DPO's alone; the search on two splits.
    assert len([line for line in part.splitlines() if line.startswith("| More ")]) == 10
    (capped,) = [line for line in part.splitlines() if line.startswith("| out of domain | 4 |")]
    assert capped.count("≥") == 2


@pytest.mark.parametrize(
    ("x", "ticks"), [((1, 5, 30), 3), ((16, 4096), 2), (tuple(range(1, 17)), 5)], ids=["few", "far", "pool"]
)
def test_curves_have_a_tick_at_each_of_a_few_values_and_at_powers_of_two_of_many(
    x: tuple[int, ...], ticks: int
) -> None:
    y = tuple(0.1 * place for place in range(len(x)))
    svg = plots.curves({"rounds": [("DPO", x, y, y, y)]}, plots.looks(["DPO"]), "", "judge")
    assert svg.count(b'id="xtick_') == ticks


def test_an_empty_folder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rewardzoo compare"):
        write_report(tmp_path)


def test_no_line_says_what_guessing_reaches_where_ties_can_be_right(tmp_path: Path) -> None:
    found = preference_of(np.random.default_rng(0))
    for benchmark, there in (("plain", True), ("genai-bench", False)):
        write_summary(tmp_path, replace(found, data=replace(found.data, benchmark=benchmark)))
        assert ("dotted line is guessing" in write_report(tmp_path).html.read_text()) is there


def test_one_reward_alone_makes_a_report_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = preference_of(rng)
    one = tuple(a for a in whole.accuracies if a.reward == REWARDS[0])
    write_summary(tmp_path, replace(whole, rewards=whole.rewards[:1], accuracies=one, contrasts=()))
    assert "hpsv2:v2.1" in write_report(tmp_path).markdown.read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.skipif(find_spec("playwright") is None, reason="needs Playwright: pip install playwright")
def test_the_page_fits_a_laptop_screen_and_sorts_by_a_click(browser: Any, folder: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto((folder / "report.html").as_uri())
    width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1], "nothing sticks out at the side"
    broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
    assert broken == 0
    table = page.locator("#glance table").first
    table.locator("thead th", has_text="accuracy, hpdv2").click()
    assert table.locator("tbody tr").first.inner_text().startswith(REWARDS[-1])
    table.locator("thead th", has_text="accuracy, hpdv2").click()
    assert table.locator("tbody tr").first.inner_text().startswith(REWARDS[0])
    assert said == []
    page.close()
