import numpy as np
import pytest

from rewardzoo.trainers.lab import COLORS, SHAPES, find_objects
from rewardzoo.trainers.lab.render import Placed, draw


def picture(*placed, seed=0, size=64):
    return draw(placed, np.random.default_rng(seed), size)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", COLORS)
def test_an_object_is_found_where_and_as_it_is(color, shape):
    for seed, radius in enumerate((4.5 / 64, 7 / 64, 11 / 64)):
        (found,) = find_objects(picture(Placed(color, shape, 0.3, 0.6, radius), seed=seed))
        assert (found.color, found.shape) == (color, shape)
        # A triangle's centroid lies a third of its radius below the middle of its square.
        drop = radius / 3 if shape == "triangle" else 0
        assert found.center == pytest.approx((0.3, 0.6 + drop), abs=0.01)
    areas = {"circle": np.pi, "square": 4, "triangle": 2, "cross": 2.3616}
    assert found.area == pytest.approx(areas[shape] * radius**2, rel=0.15)


def test_specks_are_not_objects():
    image = picture(Placed("red", "circle", 0.5, 0.5, 0.15))
    image[5:7, 5:7] = (30, 60, 225)
    assert [o.color for o in find_objects(image)] == ["red"]


def test_touching_objects_of_different_color_are_two():
    placed = (Placed("red", "square", 0.4, 0.5, 0.1), Placed("blue", "square", 0.6, 0.5, 0.1))
    assert {(o.color, o.shape) for o in find_objects(picture(*placed))} == {
        ("red", "square"),
        ("blue", "square"),
    }


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_an_empty_picture_has_no_objects(grey):
    assert find_objects(np.full((64, 64, 3), grey, np.uint8)) == []


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 3), (64, 96, 3)])
def test_pixels_at_random_do_no_harm(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert all(0 <= c <= 1 for o in find_objects(pixels) for c in o.center)


def test_centers_are_shares_of_each_side_of_an_oblong_picture():
    image = np.full((64, 128, 3), 120, np.uint8)
    image[20:32, 90:102] = (220, 40, 40)
    (found,) = find_objects(image)
    assert found.shape == "square"
    assert found.center == pytest.approx((96 / 128, 26 / 64), abs=0.005)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64, 3), np.float32),
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((0, 64, 3), np.uint8),
    ],
    ids=["float", "grey", "rgba", "empty"],
)
def test_what_is_no_rgb_picture_is_refused(image):
    with pytest.raises(ValueError, match=r"image must be uint8 RGB pixels \(H, W, 3\), got "):
        find_objects(image)
