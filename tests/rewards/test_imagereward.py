import pytest
import torch
import torchvision.transforms as T  # noqa: N812
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from rewardzoo.errors import WeightsError
from rewardzoo.rewards import Score, imagereward, load
from rewardzoo.rewards._images import CLIP_MEAN, CLIP_STD

from .conftest import TINY_BLIP, randomize, upstream_name


def test_pixels_equal_torchvisions_resize_and_centre_crop(tiny, pictures) -> None:
    upstream = T.Compose(
        [
            T.Resize(32, interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop(32),
            T.ToTensor(),
            T.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    for pixels in pictures[:6]:
        image = Image.fromarray(pixels)
        torch.testing.assert_close(
            tiny["imagereward"].prepare_image(image), upstream(image), atol=1e-6, rtol=0
        )


def test_the_vision_tower_equals_timms_under_upstreams_keys(tiny) -> None:
    reward = tiny["imagereward"]
    ours = reward.net.vision_model
    theirs = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        num_classes=0,
        global_pool="",
    )
    prefix = "blip.visual_encoder."
    state = {upstream_name(f"vision_model.{k}").removeprefix(prefix): v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(state)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            ours(pixels).last_hidden_state, theirs.eval()(pixels), atol=1e-5, rtol=1e-5
        )


def test_prompts_are_cut_and_padded_to_35_word_pieces(tiny) -> None:
    text = tiny["imagereward"].prepare_text(["Red CIRCLE, two squares", "red " * 60])
    assert text["input_ids"].shape == (2, 35)
    assert text["attention_mask"].sum(1).tolist() == [8, 35]
    assert text["input_ids"][1, -1] == 3, "the closing [SEP] survives the cut"


def test_the_special_tokens_of_bert_and_blip_are_known_in_a_prompt_where_the_model_has_them(tmp_path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "[", "]", "mask"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    prompt = "a [MASK] [mask] [DEC] [ENC]"
    with_blips = imagereward.tokenizer(tmp_path / "vocab.txt", embeddings=len(pieces) + 2)
    assert with_blips.encode(prompt).ids[:9] == [2, 5, 4, 6, 8, 7, 9, 10, 3]
    without = imagereward.tokenizer(tmp_path / "vocab.txt", embeddings=len(pieces))
    assert max(without.encode(prompt).ids) < len(pieces), (
        "an id past the embeddings would end the server's forward"
    )


def test_words_past_the_cut_change_nothing(tiny, pictures) -> None:
    long = "red circle " * 17
    same, cut = tiny["imagereward"].score([pictures[0]] * 2, [long, long + "two blue square"])
    assert same == pytest.approx(cut, abs=1e-6)


def test_the_head_is_standardised_with_upstreams_constants(tiny, pictures) -> None:
    reward = tiny["imagereward"]
    batch = reward.prepare(pictures[:2], ["a", "red circle"])
    head = {}
    handle = reward.net.mlp.register_forward_hook(lambda module, given, out: head.update(raw=out))
    try:
        scores = reward.run(batch)
    finally:
        handle.remove()
    expected = (head["raw"][:, 0] - 0.16717362830052426) / 1.0333394966054072
    assert [s.value for s in scores if isinstance(s, Score)] == pytest.approx(expected.tolist(), abs=1e-6)


def test_an_unknown_key_is_refused_by_name(tiny, tmp_path) -> None:
    net = randomize(imagereward.RankedBlip(TINY_BLIP))
    torch.save({**net.state_dict(), "surprise": torch.zeros(1)}, tmp_path / "ImageReward.pt")
    files = {"checkpoint": tmp_path / "ImageReward.pt"}
    with pytest.raises(WeightsError, match="surprise"):
        imagereward.ImageReward.load(tiny["imagereward"].variant, files)


@pytest.mark.slow
def test_the_full_size_architecture_loads_a_checkpoint_in_upstreams_format(tmp_path, pictures) -> None:
    net = imagereward.RankedBlip({})
    torch.save({upstream_name(k): v for k, v in net.state_dict().items()}, tmp_path / "ImageReward.pt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "circle"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    reward = load("imagereward:v1.0", device="cpu", weights=tmp_path)
    first, second = reward.score([pictures[0], pictures[1]], ["a red circle", "red"])
    assert reward.score([pictures[1]], ["red"])[0] == pytest.approx(second, abs=1e-5)
    assert first != second
