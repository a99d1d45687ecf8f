"""What the detection reward asks of its metadata and of boxes; `tests/parity` compares it with upstream."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from rewardzoo.errors import ItemError, WeightsError
from rewardzoo.rewards._grounding_decoder import Decoder, last_boxes, move
from rewardzoo.rewards._grounding_names import rename
from rewardzoo.rewards._relations import COUNT, OBJECT, RELATIONS, Box, Claim, caption, count, judge, position
from rewardzoo.rewards._relations import read_question as read
from rewardzoo.rewards.grounding import Grounding, build, places, target_size

SMALL = {
    "backbone_config": {
        "model_type": "swin",
        "out_indices": [2, 3, 4],
        "embed_dim": 8,
        "depths": [1, 2, 1, 1],
        "num_heads": [1, 1, 1, 1],
    },
    "text_config": {
        "model_type": "bert",
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 16,
    },
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 10,
    "sides": (96, 160),
}
WORDS = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n.\n?\ndog\ncat\ntree\nice\ncream\ncone\n"
DOG = {"objects": ["dog"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights as `transformers` saves them, and a vocabulary."""
    folder = tmp_path_factory.mktemp("grounding")
    (folder / "vocab.txt").write_text(WORDS)
    torch.manual_seed(0)
    net = build(SMALL)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    net.save_pretrained(folder)  # type: ignore[operator]
    return {"checkpoint": folder / "model.safetensors", "vocabulary": folder / "vocab.txt"}


@pytest.fixture(scope="module")
def model(files: dict[str, Path]) -> Grounding:
    return Grounding.load(replace(Grounding.spec.variants[0], config=SMALL), files)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.byte().numpy())


def box(x: float, y: float, size: float = 0.1, score: float = 0.5) -> Box:
    return Box(score, x, y, size, size)


def stands(word: str, a: Box, b: Box, aspect: float = 1.0, *, faithful: bool = False) -> float:
    return position(RELATIONS.index(word), a, b, aspect, faithful=faithful)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "metadata must say what to look for, for example"),
        ({"objects": []}, "nothing to look for"),
        ({"nouns": []}, "nothing to look for"),
        ({"objects": "dog"}, "must be a list, got str"),
        ({"objects": [{"count": 2}]}, "None where a text is expected"),
        ({"objects": [" . "]}, "where a text is expected"),
        ({"objects": [{"name": "dog", "count": "two"}]}, "whole number from 0 on, got 'two'"),
        ({"objects": [{"name": "dog", "count": True}]}, "whole number"),
        ({"relations": [["dog", "left of"]]}, "expected three texts"),
        ({"relations": [["dog", "behind", "cat"]]}, "no relation 'behind': there are above"),
        ({"relations": [["dog", "near", "dog"]]}, "to itself"),
        ({"nouns": ["dog"], "task_type": "spatial"}, "spatial_info"),
        ({"nouns": ["dog"], "task_type": "numeracy", "numeracy_info": []}, "at least one object"),
    ],
)
def test_metadata_that_ask_nothing_sensible_are_an_item_error(metadata: dict, message: str) -> None:
    with pytest.raises(ItemError, match=message):
        read(metadata, faithful=False)


def test_t2i_r1_is_asked_one_relation_at_most() -> None:
    two = {"relations": [["dog", "left of", "cat"], ["cat", "above", "tree"]]}
    assert len(read(two, faithful=False).claims) == 2
    with pytest.raises(ItemError, match="one relation an item, got 2: use grounding:fixed"):
        read(two, faithful=True)


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"objects": ["dog", "cat"]}, {"nouns": ["dog", "cat"], "task_type": "color"}),
        (
            {"objects": [{"name": "dog", "count": 2}]},
            {
                "nouns": ["dog"],
                "task_type": "numeracy",
                "numeracy_info": [{"obj_name": "dog", "num": 2}],
                "spatial_info": None,
            },
        ),
        (
            {"relations": [["dog", "left of", "cat"]]},
            {
                "nouns": ["dog", "cat"],
                "task_type": "spatial",
                "spatial_info": {"obj1": "dog", "obj2": "cat", "locality": "left of"},
            },
        ),
    ],
)
def test_the_fields_of_t2i_r1_ask_what_ours_ask(ours: dict, theirs: dict, faithful: bool) -> None:
    assert read(ours, faithful=faithful) == read(theirs, faithful=faithful)


def test_every_relation_count_and_other_object_is_a_claim_of_its_own() -> None:
    question = read(
        {
            "objects": [{"name": "dog", "count": 2}, "tree", "cat"],
            "relations": [["cat", "on top of", "tree"]],
        },
        faithful=False,
    )
    assert [question.describe(c) for c in question.claims] == ["cat above tree", "2 x dog"]
    assert question.nouns == ("dog", "tree", "cat")


def test_a_noun_of_three_words_can_be_found_but_in_t2i_r1() -> None:
    text, spans, phrases = caption(["ice cream cone", "dog"], faithful=False)
    assert (text, phrases) == ("ice cream cone . dog.", ["ice cream cone", "dog"])
    assert [text[a:b] for parts in spans for a, b in parts] == phrases
    assert caption(["ice cream cone", "dog"], faithful=True)[2] == ["ice cone", "dog"]


def test_near_is_a_matter_of_distance_but_in_t2i_r1() -> None:
    close, far = (box(0.1, 0.5), box(0.3, 0.5)), (box(0.05, 0.5), box(0.95, 0.5))
    assert stands("near", *close) == 1
    assert stands("near", *far) == pytest.approx(0.3125 / 0.9)
    assert stands("near", *far, faithful=True) == 1


def test_the_images_shape_decides_which_way_two_boxes_lie_but_in_t2i_r1() -> None:
    a, b = box(0.2, 0.2), box(0.5, 0.6)  # in an image twice as wide as high: 0.6 across, 0.4 down
    assert (stands("left of", a, b, 2.0), stands("above", a, b, 2.0)) == (1, 0)
    assert (stands("left of", a, b, 2.0, faithful=True), stands("above", a, b, 2.0, faithful=True)) == (0, 1)


def test_sides_are_told_apart_and_overlap_costs() -> None:
    left, right = box(0.2, 0.5), box(0.8, 0.5)
    assert (stands("left of", left, right), stands("right of", left, right)) == (1, 0)
    assert (stands("right of", right, left), stands("below", box(0.5, 0.9), box(0.5, 0.2))) == (1, 1)
    shared = 0.4 * 0.3  # of two boxes of side 0.4 moved by 0.1
    assert stands("left of", box(0.4, 0.5, 0.4), box(0.5, 0.5, 0.4)) == pytest.approx(
        0.1 / (shared / (2 * 0.16 - shared))
    )


def test_above_and_on_top_of_hold_but_in_t2i_r1() -> None:
    found = {0: [box(0.5, 0.2)], 1: [box(0.5, 0.8)]}
    for word in ("above", "on top of"):
        metadata = {"relations": [["dog", word, "cat"]]}
        (fixed,), (theirs,) = (read(metadata, faithful=f).claims for f in (False, True))
        assert judge(fixed, found, 1.0, faithful=False) == 1.0
        assert judge(theirs, found, 1.0, faithful=True) == 0.4


def test_overlapping_detections_are_one_object_but_in_t2i_r1() -> None:
    twice = [box(0.8, 0.8, 0.1, 0.9), box(0.81, 0.8, 0.1, 0.4), box(0.2, 0.2, 0.1, 0.5)]
    assert count(twice, faithful=False) == 2
    assert count(twice, faithful=True) == 3


def test_a_wrong_count_is_worth_less_than_a_right_one_and_more_than_none() -> None:
    found = {0: [box(0.2, 0.2), box(0.8, 0.8)]}
    scores = [judge(Claim(COUNT, 0, value=n), found, 1.0, faithful=False) for n in (2, 3, 0)]
    assert scores == [1.0, 0.2, 0.0]
    assert judge(Claim(COUNT, 1, value=1), found, 1.0, faithful=False) == 0.0
    assert judge(Claim(COUNT, 1, value=0), found, 1.0, faithful=False) == 1.0
    assert judge(Claim(COUNT, 1, value=0), found, 1.0, faithful=True) == 0.0
    assert judge(Claim(OBJECT, 0), found, 1.0, faithful=False) == 1.0


def test_t2i_r1_gives_one_where_there_is_nothing_to_look_for(files: dict[str, Path]) -> None:
    theirs = Grounding.load(replace(Grounding.spec.variants[1], config=SMALL), files)
    assert theirs.score([picture(40, 40)], [""], [{"nouns": []}]) == [1.0]


def test_images_are_resized_as_upstream_does() -> None:
    assert target_size(512, 512) == (800, 800)
    assert target_size(768, 512) == (1200, 800)
    assert target_size(4096, 256) == (1328, 83)
    assert target_size(3, 1000) == (4, 1333)
    assert target_size(800, 1000) == (800, 1000)
    assert places(800, 800) == 100**2 + 50**2 + 25**2 + 13**2


def test_a_hair_thin_image_is_an_error_of_its_own(model: Grounding) -> None:
    thin, good = model.score_items([picture(1, 4000), picture(50, 40)], ["", ""], [DOG, DOG])
    assert isinstance(thin, ItemError)
    assert "too narrow" in str(thin)
    assert not isinstance(good, ItemError)


def test_detections_do_not_depend_on_neighbours_of_other_sizes(model: Grounding) -> None:
    images = [picture(90, 30, 1), picture(40, 80, 2), picture(64, 64, 3)]
    asked = [DOG, {"objects": ["cat", "ice cream cone", {"name": "tree", "count": 3}]}, {"objects": ["tree"]}]
    together = model.score_items(images, [""] * 3, asked)
    alone = [model.score_items([i], [""], [a])[0] for i, a in zip(images, asked, strict=True)]
    assert together == alone
    assert any(outcome.details["detections"] for outcome in together)  # type: ignore[union-attr]


def test_a_box_at_an_edge_moves_as_if_it_were_a_thousandth_away() -> None:
    boxes = torch.tensor([0.0, 1e-4, 0.5, 0.9999, 1.0])
    odds = torch.tensor([1e-3, 1e-3 / 0.9999, 1.0, 0.9999 / 1e-3, 1e3])  # `transformers`: down to 1e-5
    for by in (-2.0, 0.0, 3.0):
        assert torch.allclose(move(boxes, torch.tensor(by)), (odds.log() + by).sigmoid(), rtol=1e-6)


def test_the_decoder_is_that_of_transformers_where_no_box_is_at_an_edge() -> None:
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    torch.manual_seed(0)
    fields = {key: value for key, value in SMALL.items() if key != "sides"}
    net = GroundingDinoForObjectDetection(GroundingDinoConfig(**fields)).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    asked = {"pixel_values": torch.randn(1, 3, 96, 128), "input_ids": torch.tensor([[2, 7, 5, 3]])}
    with torch.no_grad():
        theirs = net(**asked)
        net.model.decoder = Decoder(net.model.decoder)
        ours = net(**asked)
        boxes = last_boxes(net, ours)
    references = theirs.intermediate_reference_points
    assert 1e-3 < references.min() < references.max() < 0.999
    assert torch.allclose(ours.logits[..., :4], theirs.logits[..., :4], rtol=1e-5, atol=1e-6)
    assert torch.allclose(boxes, theirs.pred_boxes, rtol=1e-5)


def test_the_prompt_is_not_read(model: Grounding) -> None:
    image = picture(64, 48)
    assert len(set(map(str, model.score_items([image] * 3, ["", "dog", "x" * 5000], [DOG] * 3)))) == 1


def test_a_score_is_the_mean_of_its_parts(model: Grounding) -> None:
    asked = {"objects": [{"name": "dog", "count": 2}, "tree"], "relations": [["cat", "left of", "dog"]]}
    (outcome,) = model.score_items([picture(64, 48)], [""], [asked])
    parts = outcome.details["parts"]  # type: ignore[union-attr]
    assert [part["claim"] for part in parts] == ["cat left of dog", "2 x dog", "tree"]
    assert outcome.value == pytest.approx(sum(part["score"] for part in parts) / 3)  # type: ignore[union-attr]


def test_a_checkpoint_that_lacks_weights_or_has_others_is_refused(
    files: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(files["checkpoint"])
    variant = replace(Grounding.spec.variants[0], config=SMALL)
    for name, wrong in (
        ("less", {key: state[key] for key in list(state)[1:]}),
        ("more", {**state, "backbone.0.layers.9.oddity": torch.zeros(1)}),
    ):
        save_file(wrong, tmp_path / f"{name}.safetensors")
        with pytest.raises(WeightsError, match="does not fit this architecture"):
            Grounding.load(variant, {**files, "checkpoint": tmp_path / f"{name}.safetensors"})


def test_one_box_head_in_a_file_serves_every_layer() -> None:
    head = torch.ones(1)
    renamed = rename({"bbox_embed.0.layers.0.bias": head}, layers=2)
    assert sorted(renamed) == [
        "bbox_embed.0.layers.0.bias",
        "bbox_embed.1.layers.0.bias",
        "model.decoder.bbox_embed.0.layers.0.bias",
        "model.decoder.bbox_embed.1.layers.0.bias",
    ]
