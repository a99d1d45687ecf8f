import pytest
import torch
from PIL import Image

from rewardzoo.cli.parity import FIXTURES
from rewardzoo.errors import ItemError, WeightsError
from rewardzoo.rewards import mps
from rewardzoo.rewards._checkpoints import read_module_checkpoint
from rewardzoo.rewards._parity import load_case, read_case

IMAGE = Image.radial_gradient("L").resize((300, 227)).convert("RGB")
CASE = read_case(FIXTURES / "mps-v1")


@pytest.fixture(scope="module")
def reward():
    return load_case(CASE)


def scores(reward, *conditions: str | None) -> list[float]:
    notes = [{} if c is None else {"condition": c} for c in conditions]
    n = len(conditions)
    return reward.score([IMAGE] * n, ["an astronaut riding a horse on the moon"] * n, notes)


def test_the_condition_is_overall_unless_the_metadata_say_otherwise(reward) -> None:
    plain, named, spelled, other = scores(
        reward, None, "overall", mps.CONDITIONS["overall"], "quantity, attributes, position, number, location"
    )
    assert plain == named == spelled
    assert other == scores(reward, "alignment")[0]


def test_the_other_conditions_are_parts_of_overall() -> None:
    words = {name: set(text.rstrip(".").split(", ")) for name, text in mps.CONDITIONS.items()}
    assert all(words[name] < words["overall"] for name in words if name != "overall")


@pytest.mark.parametrize("bad", [3, "", "  ", None, ["light"]])
def test_a_condition_that_is_not_words_is_that_items_error(reward, bad) -> None:
    good, wrong = reward.score_items([IMAGE] * 2, ["a cat"] * 2, [{}, {"condition": bad}])
    assert isinstance(wrong, ItemError)
    assert "overall, aesthetics" in str(wrong)
    assert good.value == reward.score([IMAGE], ["a cat"])[0]


def test_the_two_thresholds_hide_different_words() -> None:
    strict = load_case(read_case(FIXTURES / "mps-eval"))
    assert strict.threshold == 0.3
    assert scores(load_case(CASE), None)[0] != pytest.approx(scores(strict, None)[0], rel=1e-4)


def test_words_under_the_threshold_have_no_effect(reward) -> None:
    net = reward.net
    generator = torch.Generator().manual_seed(0)
    patches, tokens = torch.randn(1, 5, 24, generator=generator), torch.randn(1, 7, 24, generator=generator)
    looked_at = torch.tensor([[True, True, False, True, False, True, True]])
    before = net.cross_model(patches, tokens, looked_at)
    tokens[:, [2, 4]] += 9
    torch.testing.assert_close(net.cross_model(patches, tokens, looked_at), before, atol=0, rtol=0)


def test_equal_prompts_conditions_and_images_are_encoded_once(reward) -> None:
    inputs = reward.prepare([IMAGE] * 3, ["a", "b", "a"], [{}, {}, {"condition": "light"}]).inputs
    assert [len(inputs[k]) for k in ("pixel_values", "input_ids", "condition_ids")] == [1, 2, 2]
    assert inputs["condition_index"].tolist() == [0, 0, 1]


def test_the_pickled_module_and_the_copy_on_the_hub_are_read_alike() -> None:
    pickled = mps.rename_upstream(read_module_checkpoint(CASE.files["checkpoint"]))
    copy = load_case(read_case(FIXTURES / "mps-eval")).net.state_dict()
    assert pickled.keys() == copy.keys()
    assert all(torch.equal(pickled[key], copy[key]) for key in copy)


def test_a_checkpoint_of_plain_clip_is_refused() -> None:
    files = {**CASE.files, "checkpoint": FIXTURES / "pickscore" / "model.safetensors"}
    with pytest.raises(WeightsError, match="cross_model"):
        mps.MPS.load(load_case(CASE).variant, files)
