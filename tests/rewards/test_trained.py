import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rewardzoo import LocalRewards
from rewardzoo.errors import WeightsError
from rewardzoo.rewards import identify, load, resolve
from rewardzoo.rewards._hashes import sha256
from rewardzoo.rewards._trained import MANIFEST, write_variant

MINIS = Path(__file__).parents[2] / "rewards" / "minis"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as training leaves it: here, hpsv2:mini's files under another name."""
    folder = tmp_path / "my-hps"
    shutil.copytree(MINIS / "hpsv2", folder / "model")
    mini = resolve("hpsv2:mini")[1]
    write_variant(
        folder,
        "hpsv2",
        recipe=mini.recipe,
        files={"checkpoint": "model/model.safetensors", "tokenizer": "model/tokenizer.json"},
        weights_license="Apache-2.0",
        config=mini.config,
    )
    return folder


def test_a_trained_variant_is_named_by_its_folder_and_scores_with_its_weights(run: Path) -> None:
    model = load(f"hpsv2:{run}")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert model.name == "hpsv2:my-hps"
    assert model.score([image], ["a red circle"]) == load("hpsv2:mini").score([image], ["a red circle"])


def test_its_provenance_has_the_hashes_of_its_weights_and_of_its_manifest(run: Path) -> None:
    said = load(f"hpsv2:{run}").provenance()
    assert said["variant"] == "my-hps"
    assert said["weights_sha256"] == sha256(run / "model" / "model.safetensors")
    assert said["manifest_sha256"] == sha256(run / MANIFEST)
    assert identify(f"hpsv2:{run}")["weights_sha256"] == said["weights_sha256"]


def test_scores_can_be_asked_for_by_its_name_as_by_its_place(run: Path) -> None:
    scorer = LocalRewards([f"hpsv2:{run}"])
    image = np.zeros((64, 64, 3), np.uint8)
    by_name = scorer.score([image], "a red circle", reward="hpsv2:my-hps")
    assert by_name == scorer.score([image], "a red circle", reward=f"hpsv2:{run}")


def test_a_folder_without_a_manifest_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no .*reward\.json.*weights=PATH"):
        resolve(f"hpsv2:{tmp_path}/")


def test_a_variant_of_another_reward_is_refused(run: Path) -> None:
    with pytest.raises(WeightsError, match="variant of 'hpsv2': load it as that, not 'imagereward'"):
        resolve(f"imagereward:{run}")


def test_a_folder_that_is_called_like_a_released_variant_is_refused(run: Path) -> None:
    with pytest.raises(WeightsError, match="hpsv2:mini, as a released variant is"):
        resolve(f"hpsv2:{run.rename(run.parent / 'mini')}")


def test_a_manifest_that_names_a_file_that_is_not_there_is_refused(run: Path) -> None:
    (run / "model" / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"tokenizer\.json is named by the reward\.json beside it"):
        load(f"hpsv2:{run}")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("files", {"checkpoint": "../secret"}, "outside of the folder"), ("recipe", None, "without recipe")],
)
def test_a_bad_manifest_is_refused(run: Path, field: str, value: object, message: str) -> None:
    manifest = json.loads((run / MANIFEST).read_text())
    manifest[field] = value
    if value is None:
        del manifest[field]
    (run / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=message):
        resolve(f"hpsv2:{run}")


def test_a_hub_repository_that_cannot_be_reached_is_an_error_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="hf download someone/orm-nobody-made"):
        resolve("orm:hf://someone/orm-nobody-made@main")
