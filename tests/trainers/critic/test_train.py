"""From data to a variant that is loaded and scores, with tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.serving.harness import running, zoo
from rewardzoo import RewardClient
from rewardzoo.cli.parity import FIXTURES
from rewardzoo.rewards import load, resolve
from rewardzoo.rewards._critic import Critic
from rewardzoo.rewards._parity import load_case, read_case
from rewardzoo.trainers.config import load_config
from rewardzoo.trainers.critic.config import CriticConfig, ModelSection
from rewardzoo.trainers.critic.fit import Fit
from rewardzoo.trainers.critic.records import Record, png, read, write_part
from rewardzoo.trainers.critic.tasks import Answers
from rewardzoo.trainers.critic.train import train


def picture(bright: bool, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 100, (16, 16, 3)).astype(np.uint8) + np.uint8(150 if bright else 0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pictures that are right when they are bright: finished, and unfinished ones of the same."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("in_domain", 16)):
        records = []
        for i in range(count):
            bright = i % 2 == 0
            image, prompt, name = png(picture(bright, rng)), f"thing {split} {i // 4}", f"{split}-{i}"
            records.append(Record(image, prompt, "selection", float(bright), 16, 16, name))
            records.append(Record(image, prompt, "potential", float(bright), 12, 16, name))
            records.append(Record(image, prompt, "clarity", float(i % 4 < 2), 8 + i % 4, 16, name))
        write_part(tmp_path / "data" / split / "part-00000.parquet", records)
    return tmp_path / "data"


def settings(data: Path, out: Path, base: str, **model: Any) -> dict[str, Any]:
    return {
        "data": {"folder": str(data), "held_out": {"in_domain": {"source": "lab:in_domain"}}},
        "model": {"base": base, **model},
        "optimizer": {"lr": 1e-3, "micro_batch_size": 4},
        "run": {
            "out": str(out),
            "epochs": 3,
            "batch_size": 8,
            "validate_every": 4,
            "validation_share": 0.2,
            "save_every": 4,
        },
    }


def config(*args: Any, **model: Any) -> CriticConfig:
    return CriticConfig.model_validate(settings(*args, **model))


@pytest.fixture
def parm_base(tmp_path: Path) -> str:
    """A critic of the parity case's kind that sees four patches, random, as a trained variant is written."""
    critic = parity_critic()
    config = critic.vlm.model.config
    config.vision_config.image_size = 28
    torch.manual_seed(0)
    critic.vlm.model = type(critic.vlm.model)(config)
    return saved(critic, tmp_path / "base")


def parity_critic() -> Any:
    return load_case(read_case(FIXTURES / "parm-yes-no"))


def saved(critic: Any, folder: Path) -> str:
    Answers(critic, ModelSection(base="parm")).save(folder, {}, "none")
    return f"parm:{folder}"


def test_a_critic_learns_is_written_and_scores_as_it_did_in_training(data, tmp_path, parm_base) -> None:
    chosen = config(data, tmp_path / "run", parm_base, stages=["selection", "clarity", "potential"])
    out = train(chosen)
    found = json.loads((out / "metrics.json").read_text())
    assert found["quality"]["in_domain"]["selection"]["accuracy"] > 0.9
    assert {"clarity", "potential", "potential: 12/16"} < set(found["quality"]["in_domain"])
    served = load(f"parm:{out}")
    rows = [row for row in read(data, "in_domain") if row["stage"] == "selection"]
    images = [np.asarray(row["image"]) for row in rows]
    scores = served.score(images, [row["prompt"] for row in rows], [{"stage": "selection"}] * len(rows))
    said = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    in_training = [r["p_yes"] for r in said if (r["split"], r["group"]) == ("in_domain", "selection")]
    assert scores == pytest.approx(in_training, abs=1e-6)
    right = np.mean([(s >= 0.5) == (row["label"] == 1) for s, row in zip(scores, rows, strict=True)])
    assert right == found["quality"]["in_domain"]["selection"]["accuracy"]
    card = (out / "README.md").read_text()
    assert "| in_domain | selection | 16 |" in card
    assert served.provenance()["weights_sha256"] in card
    assert Image.open(out / "reliability.png").size[0] > 300


@pytest.mark.slow
def test_a_served_process_gives_the_scores_that_the_training_process_gave(data, tmp_path, parm_base) -> None:
    out = train(config(data, tmp_path / "run", parm_base, stages=["selection", "clarity", "potential"]))
    lines = (out / "predictions.jsonl").read_text().splitlines()
    said = [row for row in map(json.loads, lines) if row["split"] == "in_domain"]
    rows = list(read(data, "in_domain"))
    images = [np.asarray(row["image"]) for row in rows]
    notes = [{"stage": "selection" if row["stage"] == "selection" else "potential"} for row in rows]
    with running(zoo(f"parm:{out}")) as server, RewardClient(server.url) as client:
        prompts = [row["prompt"] for row in rows]
        result = client.score_result(images, prompts, reward="parm:run", metadata=notes)
    scores = [details[row["stage"]] for details, row in zip(result.details, rows, strict=True)]
    assert scores == pytest.approx([row["p_yes"] for row in said], abs=1e-6)
    assert len({round(score, 6) for score in scores}) > 10


def test_a_critic_keeps_the_scores_that_its_base_had_in_another_format(tmp_path) -> None:
    before = parity_critic()
    after = load(saved(parity_critic(), tmp_path / "base"))
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    for stage in ("selection", "potential"):
        one, other = (m.score_items([image], ["a cat"], [{"stage": stage}])[0] for m in (before, after))
        assert other.value == pytest.approx(one.value, abs=1e-6)


def test_adapters_are_trained_alone_and_merged(data, tmp_path, parm_base) -> None:
    chosen = config(data, tmp_path / "run", parm_base, lora={"rank": 2})
    out = train(chosen)
    before, after = load(parm_base), load(f"parm:{out}")
    old, new = before.net.state_dict(), after.net.state_dict()
    assert old.keys() == new.keys()
    changed = {key for key in old if not (old[key] == new[key]).all()}
    assert changed
    assert all("language_model.layers" in key for key in changed)


def test_preferences_teach_a_reward_whose_folder_is_then_a_variant(data, tmp_path) -> None:
    chosen = config(data, tmp_path / "run", "hpsv2:mini", loss="preference", scale=20.0)
    out = train(chosen)
    found = json.loads((out / "metrics.json").read_text())
    assert found["quality"]["in_domain"]["preference"]["accuracy"] > 0.9
    reward = load(f"hpsv2:{out}")
    rng = np.random.default_rng(5)
    bright, dark = reward.score([picture(True, rng), picture(False, rng)], ["thing in_domain 1"] * 2)
    assert bright > dark
    assert reward.name == "hpsv2:run"


def test_a_training_that_was_killed_goes_on_to_the_same_weights(data, tmp_path, monkeypatch) -> None:
    def weights(out: Path) -> str:
        return json.loads((out / "metrics.json").read_text())["weights_sha256"]

    whole = train(config(data, tmp_path / "whole", "hpsv2:mini", loss="preference", scale=20.0))

    class Killed(Exception):  # noqa: N818
        pass

    learn, calls = Fit._learn, []

    def dying(self: Fit, parts: Any) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return learn(self, parts)

    cut = config(data, tmp_path / "cut", "hpsv2:mini", loss="preference", scale=20.0)
    cut = cut.model_copy(update={"run": cut.run.model_copy(update={"save_every": 1})})
    monkeypatch.setattr(Fit, "_learn", dying)
    with pytest.raises(Killed):
        train(cut)
    monkeypatch.setattr(Fit, "_learn", learn)
    assert weights(train(cut)) == weights(whole)


def test_a_wrong_setting_is_named(tmp_path) -> None:
    file = tmp_path / "critic.yaml"
    file.write_text("data: {folder: x, steps: [2]}\nmodel: {bse: orm}\noptimizer: {lr: 1}\nrun: {out: y}\n")
    with pytest.raises(
        ValueError, match=r"shares of a picture[\s\S]*model.base: is missing[\s\S]*did you mean base"
    ):
        load_config(CriticConfig, file)


@pytest.mark.parametrize(
    ("base", "loss", "message"),
    [("hpsv2:mini", "answers", "answers no questions"), ("parm:BASE", "preference", "cannot be taught pref")],
)
def test_what_a_base_cannot_be_taught_is_refused(data, tmp_path, parm_base, base, loss, message) -> None:
    base = parm_base if "BASE" in base else base
    with pytest.raises(ValueError, match=message):
        train(config(data, tmp_path / "run", base, loss=loss))


@pytest.mark.parametrize(
    "name", ["orm_llava_onevision_7b", "parm_llava_onevision_7b", "pickscore_preference"]
)
def test_the_configurations_that_ship_are_valid_and_their_bases_can_be_taught_that(name: str) -> None:
    shipped = load_config(CriticConfig, name)
    reward, _ = resolve(shipped.model.base)
    assert issubclass(reward, Critic) == (shipped.model.loss == "answers")
    clear = {shipped.data.is_clear(share) for share in shipped.data.steps}
    assert clear == ({True, False} if "clarity" in shipped.model.stages else set())
