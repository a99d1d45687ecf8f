"""Probing with rewards whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from rewardzoo.clients.compare.building import build
from rewardzoo.clients.compare.groups import Group
from rewardzoo.clients.compare.perturbations import Probe, default_probes
from rewardzoo.clients.compare.probe_effects import effects_of, most_raised, spreads_of
from rewardzoo.clients.compare.probe_study import probe_store, read_paraphrases
from rewardzoo.clients.compare.probes import ProbeItem, ProbeScores, score_probes
from rewardzoo.clients.compare.statistics import Bootstrap
from rewardzoo.clients.compare.store import ScoreStore
from rewardzoo.clients.compare.summaries import read_summary, write_summary
from rewardzoo.clients.in_process import InProcess
from rewardzoo.clients.scorer import Scorer
from rewardzoo.errors import ItemError

BOOTSTRAP = Bootstrap(resamples=200)


@dataclass(frozen=True)
class Given:
    """A score."""

    value: float
    details: Mapping[str, Any]


class Fake:
    """A reward by a function of image and prompt; it cannot score a prompt with "fail" in it."""

    def __init__(self, name: str, function: Any) -> None:
        self.name, self._function = name, function
        self.told: list[Mapping[str, Any]] = []

    def score_items(
        self, images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[Given | ItemError]:
        self.told += metadata
        return [
            ItemError("no") if "fail" in p else Given(float(self._function(i, p)), {})
            for i, p in zip(images, prompts, strict=True)
        ]

    def provenance(self) -> Mapping[str, Any]:
        return {"recipe": self.name}


def vividness(image: np.ndarray, prompt: str) -> float:
    return float((image.max(axis=2).astype(float) - image.min(axis=2)).mean())


def scorer(*models: Fake) -> Scorer:
    return Scorer(InProcess({model.name: model for model in models}), timeout=60, max_in_flight=1)


def vivid() -> Fake:
    return Fake("vivid:v1", vividness)


def wordy() -> Fake:
    return Fake("wordy:v1", lambda image, prompt: len(prompt.split()))


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 60 + 3 * i, (32, 32, 3)).astype(np.uint8) for i in range(count)]


def items(count: int = 12) -> list[ProbeItem]:
    return [ProbeItem(f"i{n}", f"prompt number {n // 3}", image) for n, image in enumerate(pictures(count))]


def add(amount: int) -> Probe:
    return Probe(
        f"add {amount}", "add", "prompt", "same", lambda image, prompt, _: (image, prompt + " more" * amount)
    )


def test_each_score_is_the_rewards_own_of_the_changed_pair() -> None:
    probes = default_probes([item.prompt for item in items()])
    with scorer(vivid(), wordy()) as fake:
        scored = score_probes(fake, ["vivid:v1", "wordy:v1"], items(), probes, seed=5, batch=5)
    for n, item in enumerate(items()):
        assert scored.original[n].tolist() == pytest.approx([vividness(item.image, ""), 3])
        for at, probe in enumerate(probes):
            pair = probe(item.image, item.prompt, item.id, 5)
            if pair is None:
                assert not scored.applied[at, n]
                assert np.isnan(scored.probed[at, n]).all()
            else:
                expected = [vividness(*pair), len(pair[1].split())]
                assert scored.probed[at, n].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_size_of_batches_and_the_order_of_items_change_nothing() -> None:
    probes = default_probes([item.prompt for item in items()])
    with scorer(vivid()) as fake:
        whole = score_probes(fake, ["vivid:v1"], items(), probes)
        turned = score_probes(fake, ["vivid:v1"], items()[::-1], probes, batch=5)
    np.testing.assert_array_equal(whole.probed, turned.probed[:, ::-1])


def test_a_picture_that_cannot_be_read_and_one_that_cannot_be_scored_cost_no_other(tmp_path: Path) -> None:
    some = [*items(3), ProbeItem("bad", "p", tmp_path / "gone.png"), ProbeItem("no", "fail", pictures(1)[0])]
    with scorer(vivid()) as fake:
        scored = score_probes(fake, ["vivid:v1"], some, [add(1)])
    assert np.isnan(scored.original[:, 0]).tolist() == [False] * 3 + [True, True]
    assert scored.applied[0].tolist() == [True] * 3 + [False, True]
    (effect,) = effects_of(scored, BOOTSTRAP)
    assert (effect.items, effect.failed) == (3, 1)


def test_metadata_goes_with_the_prompt_that_it_was_written_for() -> None:
    fake = vivid()
    item = ProbeItem("a", "some words", pictures(1)[0], metadata={"questions": ["?"]})
    flip = next(probe for probe in default_probes() if probe.name == "flip")
    with scorer(fake) as used:
        score_probes(used, ["vivid:v1"], [item], [flip, add(1)])
    assert fake.told == [{"questions": ["?"]}, {"questions": ["?"]}, {}]


@pytest.mark.parametrize(
    ("rewards", "some", "message"),
    [
        ([], items(1), "0 and 1"),
        (["vivid:v1"], [], "1 and 0"),
        (["vivid:v1"], [*items(1), *items(1)], "'i0' is there 2 times"),
    ],
)
def test_what_cannot_be_probed_is_refused(rewards: list[str], some: list[ProbeItem], message: str) -> None:
    with scorer(vivid()) as fake, pytest.raises(ValueError, match=message):
        score_probes(fake, rewards, some, [add(1)])


BRIGHTER = Probe("brighter", "brighter", "image", "same", lambda image, prompt, _: (image, prompt))


def scored_by(
    original: np.ndarray, change: np.ndarray, groups: list[str], probe: Probe = BRIGHTER
) -> ProbeScores:
    """One reward and one probe that changes scores by `change`."""
    column = original.astype(np.float32)[:, None]
    probed = (original + change).astype(np.float32)[None, :, None]
    ids = tuple(map(str, range(len(original))))
    return ProbeScores(
        ("r",), (probe,), ids, tuple(groups), column, probed, np.ones((1, len(original)), bool)
    )


def test_effects_are_in_units_of_the_spread_between_images_and_between_candidates() -> None:
    rng = np.random.default_rng(0)
    prompt, candidate = rng.normal(0, 3, 200).repeat(4), rng.normal(0, 0.5, 800)
    scored = scored_by(prompt + candidate, np.full(800, 1.0), [str(i // 4) for i in range(800)])
    (spread,) = spreads_of(scored)
    assert spread.images == pytest.approx((prompt + candidate).std(ddof=1), rel=1e-4)
    within = math.sqrt(np.mean([v.var(ddof=1) for v in (prompt + candidate).reshape(200, 4)]))
    assert spread.candidates == pytest.approx(within, rel=1e-4)
    (effect,) = effects_of(scored, BOOTSTRAP)
    assert effect.shift.value == pytest.approx(1 / spread.images, rel=1e-4)
    assert effect.shift_candidates.value == pytest.approx(1 / spread.candidates, rel=1e-4)
    assert (effect.share_up.value, effect.items, effect.prompts) == (1.0, 800, 200)


@pytest.mark.parametrize(
    ("mean", "sd", "hacks"), [(0.5, 0.3, True), (-0.5, 0.3, False), (0.0, 1.0, False), (0.02, 0.001, False)]
)
def test_a_hack_raises_most_pictures_and_by_more_than_a_trifle(mean: float, sd: float, hacks: bool) -> None:
    rng = np.random.default_rng(1)
    scored = scored_by(rng.normal(0, 1, 400), rng.normal(mean, sd, 400), [str(i // 2) for i in range(400)])
    (effect,) = effects_of(scored, BOOTSTRAP)
    assert effect.hacks is hacks
    expected = mean / spreads_of(scored)[0].images
    assert effect.shift.value == pytest.approx(expected, abs=4 * sd / 20 + 1e-4)
    assert effect.shift.low < effect.shift.value < effect.shift.high


def test_a_rise_under_another_prompt_is_no_hack() -> None:
    scored = scored_by(np.random.default_rng(0).normal(0, 1, 400), np.full(400, 0.5), ["a"] * 400, add(1))
    (effect,) = effects_of(scored, BOOTSTRAP)
    assert effect.rises
    assert not effect.hacks


def test_pictures_of_one_prompt_are_drawn_together() -> None:
    # Of one prompt all change alike, so 1,000 pictures of 20 prompts say as much as 20 pictures.
    rng = np.random.default_rng(2)
    change = rng.normal(0, 1, 20).repeat(50)
    scored = scored_by(rng.normal(0, 1, 1000), change, [str(i // 50) for i in range(1000)])
    (effect,) = effects_of(scored, BOOTSTRAP)
    assert effect.shift.high - effect.shift.low > 2 * 1.96 / math.sqrt(20) * 0.6


def test_a_reward_that_gives_every_picture_one_score_has_no_unit() -> None:
    (effect,) = effects_of(scored_by(np.ones(10), np.zeros(10), ["a"] * 10), BOOTSTRAP)
    assert math.isnan(effect.shift.value)
    assert not effect.hacks


def test_the_picture_that_a_hack_raises_most_is_found() -> None:
    change = np.full(50, 1.0)
    change[31] = 4.0
    scored = scored_by(np.random.default_rng(0).normal(0, 1, 50), change, [str(i) for i in range(50)])
    assert most_raised(scored, effects_of(scored, BOOTSTRAP), 5) == [(0, 31, 0)]


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    groups = []
    for n, image in enumerate(pictures(12)):
        Image.fromarray(image).save(tmp_path / f"{n}.png")
        if n % 3 == 2:
            names = tuple(f"{k}.png" for k in range(n - 2, n + 1))
            groups.append(Group(f"p{n // 3}", f"prompt <b>{n // 3}</b>", names))
    known = {"name": "tiny", "benchmark": "plain", "source": "here", "license": "CC0"}
    return build(tmp_path / "out" / "data" / "tiny", tmp_path, lambda: groups, **known)


def test_a_store_is_probed_to_a_summary_rows_and_pictures(store: ScoreStore, tmp_path: Path) -> None:
    out, told = tmp_path / "out", []
    with scorer(vivid(), wordy()) as fake:
        found = probe_store(
            store,
            fake,
            ["vivid:v1", "wordy:v1"],
            BOOTSTRAP,
            {},
            folder=out,
            on_progress=lambda *x: told.append(x),
        )
    assert str(read_summary(write_summary(out, found))) == str(found)  # NaN is unlike itself
    assert found.effect("saturation 1.6", "vivid:v1").hacks, (
        "a reward of vivid colours is hacked by saturation"
    )
    assert found.effect("blank image", "vivid:v1").share_up.value == 0
    assert found.effect("JPEG 20", "wordy:v1").share_up.value == 0
    rows = parquet.read_table(out / "probes-tiny.parquet").to_pylist()
    row = next(r for r in rows if (r["item"], r["probe"], r["reward"]) == (4, "blank image", "vivid:v1"))
    assert row["score"] == pytest.approx(vividness(pictures(12)[4], ""), rel=1e-5)
    assert row["probed_score"] == 0
    assert {r["item"] for r in rows} == set(range(12))
    example = next(e for e in found.examples if e.reward == "vivid:v1")
    before, after = (np.asarray(Image.open(out / path)) for path in example.images)
    assert vividness(after, "") == pytest.approx(example.scores[1], rel=1e-5)
    assert vividness(before, "") == pytest.approx(example.scores[0], rel=1e-5)
    assert [i.image != "" for i in found.probes] == [
        i.changes == "image" and "side" not in i.name for i in found.probes
    ]
    assert told[-1][0] == told[-1][1] > 12 * 20
    assert found.rewards[0].provenance == {"recipe": "vivid:v1"}


def test_a_limit_takes_whole_prompts(store: ScoreStore, tmp_path: Path) -> None:
    with scorer(vivid()) as fake:
        found = probe_store(store, fake, ["vivid:v1"], BOOTSTRAP, {}, folder=tmp_path / "out", limit=6)
    assert (found.data.items, found.data.prompts) == (6, 2)


def test_paraphrases_are_read_from_json_lines_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "paraphrase": "b"}\n\n{"prompt": "a", "paraphrase": ["c", "d"]}\n')
    assert read_paraphrases(path) == {"a": ["b", "c", "d"]}
    path.write_text('{"prompt": "a", "paraphrase": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_paraphrases(path)
