import json

import numpy as np
import pytest
import torch
from PIL import Image

from rewardzoo.trainers.preferences import Preferences, read_pairs

from .tiny_policy import TinyPolicy

N = 4


def never(images):
    raise AssertionError("no pictures here")


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def some_pairs(count=6):
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(0, 99, (2, count, N)).astype(np.int32)
    gap = rng.random(count).astype(np.float32)
    pairs = Preferences.of([f"p {i}" for i in range(count)], chosen, rejected, gap)
    return pairs.drop_conditions(0.5, rng)


def same(one, other):
    return list(one.prompts) == list(other.prompts) and all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name not in ("blank",))
        for name in ("chosen", "rejected", "gap", "blank", "reference")
    )


def test_saved_pairs_are_loaded_as_they_were(tmp_path):
    pairs = some_pairs()
    pairs.save(tmp_path / "a" / "pairs.parquet")
    loaded = Preferences.load(tmp_path / "a" / "pairs.parquet")
    assert same(pairs, loaded)
    assert loaded.chosen.dtype == np.int32
    assert loaded.blank.dtype == np.bool_
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["pairs.parquet"]


def test_no_pairs_are_saved_and_loaded(tmp_path):
    some_pairs(0).save(tmp_path / "pairs.parquet")
    assert len(Preferences.load(tmp_path / "pairs.parquet")) == 0


def test_rows_are_picked_in_order():
    pairs = some_pairs()
    picked = pairs[np.array([4, 1, 1])]
    assert list(picked.prompts) == ["p 4", "p 1", "p 1"]
    assert np.array_equal(picked.rejected, pairs.rejected[[4, 1, 1]])
    assert np.array_equal(picked.blank, pairs.blank[[4, 1, 1]])


def test_dropped_conditions_are_about_the_share_and_follow_from_the_generator():
    pairs = some_pairs(2000)
    blank = pairs.drop_conditions(0.1, np.random.default_rng(1)).blank
    assert 150 < blank.sum() < 250
    assert np.array_equal(blank, pairs.drop_conditions(0.1, np.random.default_rng(1)).blank)
    assert not pairs.drop_conditions(0.0, np.random.default_rng(1)).blank.any()


def test_token_ids_are_read_from_json_lines_and_parquet(tmp_path):
    pairs = some_pairs()
    pairs.save(tmp_path / "b.parquet")
    rows = [
        {"prompt": p, "chosen": c.tolist(), "rejected": r.tolist(), "by": "me"}
        for p, c, r in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
    ]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    for name in (source, str(tmp_path / "b.parquet")):
        read = read_pairs(name, N, never)
        assert list(read.prompts) == list(pairs.prompts)
        assert np.array_equal(read.chosen, pairs.chosen)
        assert np.array_equal(read.rejected, pairs.rejected)
        assert not read.blank.any()
        assert np.isnan(read.reference).all()
    assert len(read_pairs(str(tmp_path / "[ab].*"), N, never)) == 12


def test_pictures_are_encoded_in_their_places(tmp_path):
    policy = TinyPolicy(tokens_per_image=16)
    tokens = torch.randint(0, 6, (40, 16))
    for i, pixels in enumerate(policy.decode(tokens)):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    rows = [
        {"prompt": f"p {i}", "chosen": f"{i}.png", "rejected": str(tmp_path / f"{i + 20}.png")}
        for i in range(20)
    ]
    rows[3]["chosen"] = [5] * 16
    read = read_pairs(write_jsonl(tmp_path / "a.jsonl", rows), 16, policy.encode_images)
    tokens[3] = 5
    assert np.array_equal(read.chosen, tokens[:20].numpy())
    assert np.array_equal(read.rejected, tokens[20:].numpy())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": [1] * N, "rejected": [1] * N}, "row 2: no text in column prompt"),
        ({"prompt": "p", "chosen": [1] * N}, "row 2: rejected must be a list of token ids or the path"),
        ({"prompt": "p", "chosen": [1] * 3, "rejected": [1] * N}, "row 2: chosen has 3 tokens, .* has 4"),
        ({"prompt": "p", "chosen": [1, 2, 3, -4], "rejected": [1] * N}, r"row 2: chosen must be .* -4\]"),
        (
            {"prompt": "p", "chosen": "no.png", "rejected": [1] * N},
            r"row 2: chosen: there is no picture .*no\.png",
        ),
    ],
)
def test_row_that_cannot_be_used_is_named(tmp_path, row, message):
    good = {"prompt": "p", "chosen": [1] * N, "rejected": [2] * N}
    with pytest.raises(ValueError, match=message):
        read_pairs(write_jsonl(tmp_path / "a.jsonl", [good, row]), N, never)


def test_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no")
    row = {"prompt": "p", "chosen": "a.png", "rejected": [1] * N}
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture"):
        read_pairs(write_jsonl(tmp_path / "a.jsonl", [row]), N, never)


def test_missing_or_empty_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"pairs\.source: there is no file .*none\.jsonl"):
        read_pairs(str(tmp_path / "none.jsonl"), N, never)
    with pytest.raises(ValueError, match="holds no pairs"):
        read_pairs(write_jsonl(tmp_path / "a.jsonl", []), N, never)
    (tmp_path / "a.csv").write_text("prompt")
    with pytest.raises(ValueError, match=r"a\.csv must be \.jsonl or \.parquet"):
        read_pairs(str(tmp_path / "a.csv"), N, never)
