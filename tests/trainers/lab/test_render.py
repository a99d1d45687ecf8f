import numpy as np
import pytest

from rewardzoo.trainers.lab import Entity, Relation, Scene, render, sample_scene
from rewardzoo.trainers.lab.render import PALETTE, Placed, draw, place, signed_distance


def scenes(n, seed=0):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, split) for split in ("in_domain", "out_of_domain") for _ in range(n)]


@pytest.mark.parametrize("size", [32, 48, 64, 128])
def test_a_picture_is_rgb_bytes_of_the_size_asked_for(size):
    picture = render(scenes(1)[0], np.random.default_rng(0), size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8


def test_a_seed_fixes_the_picture():
    scene = scenes(1)[0]
    first, again, other = (render(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_all_objects_of_a_scene_are_placed_apart_and_inside():
    rng = np.random.default_rng(3)
    for scene in scenes(400):
        placed = place(scene, rng)
        kinds = [(p.color, p.shape) for p in placed]
        for entity in scene.entities:
            assert kinds.count((entity.color, entity.shape)) == entity.count
        assert len(placed) == sum(e.count for e in scene.entities)
        for i, a in enumerate(placed):
            assert a.radius * 2 * 64 > 7
            assert all(a.radius + 2 / 64 < c < 1 - a.radius - 2 / 64 for c in (a.x, a.y))
            for b in placed[:i]:
                apart = max(abs(a.x - b.x), abs(a.y - b.y)) - a.radius - b.radius
                assert apart * 64 > 2


def test_relations_hold_between_all_objects_of_two_entities():
    rng = np.random.default_rng(4)
    for scene in scenes(400):
        placed = place(scene, rng)
        for a, b, relation in zip(scene.entities, scene.entities[1:], scene.relations, strict=False):
            first, second = (
                [(p.x, p.y)[relation.axis] for p in placed if (p.color, p.shape) == kind]
                for kind in ((a.color, a.shape), (b.color, b.shape))
            )
            if relation in (Relation.RIGHT_OF, Relation.BELOW):
                first, second = second, first
            assert max(first) < min(second)


def test_objects_carry_their_color_on_an_unsaturated_background():
    placed = (Placed("red", "square", 0.5, 0.5, 0.2),)
    picture = draw(placed, np.random.default_rng(5), noise=0.0).astype(int)
    assert np.abs(picture[32, 32] - PALETTE["red"]).max() <= 13
    corner = picture[2, 2]
    assert corner.max() - corner.min() <= 11


def test_noise_is_as_strong_as_asked_for():
    placed = (Placed("red", "square", 0.7, 0.7, 0.1),)
    calm, noisy = (draw(placed, np.random.default_rng(6), noise=n) for n in (0.0, 10.0))
    difference = noisy[:32, :32].astype(float) - calm[:32, :32]
    assert difference.std() == pytest.approx(10, rel=0.1)


def test_pictures_vary_in_background_place_and_size():
    scene = Scene((Entity(1, "green", "cross"),))
    rng = np.random.default_rng(7)
    corners = [render(scene, rng)[0, 0].mean() for _ in range(100)]
    placed = [place(scene, rng)[0] for _ in range(100)]
    assert min(corners) < 60
    assert max(corners) > 195
    assert np.ptp([p.x for p in placed]) > 0.4
    assert np.ptp([p.radius for p in placed]) > 0.03


@pytest.mark.parametrize(
    ("shape", "area"), [("circle", np.pi), ("square", 4), ("triangle", 2), ("cross", 2.3616)]
)
def test_shapes_fill_their_square_with_the_right_area(shape, area):
    axis = np.linspace(-1.1, 1.1, 441, dtype=np.float32)
    inside = signed_distance(shape, axis, axis[:, None]) < 0
    assert inside.mean() * 2.2**2 == pytest.approx(area, rel=0.02)
    rows, columns = np.nonzero(inside)
    assert axis[rows.max()] == pytest.approx(1, abs=0.02)
    assert axis[columns.min()] == pytest.approx(-1, abs=0.02)


def test_unusable_settings_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="size must be at least 32 pixels, got 16"):
        draw((), rng, size=16)
    with pytest.raises(ValueError, match=r"noise must not be negative, got -1\.0"):
        draw((), rng, noise=-1.0)
    with pytest.raises(ValueError, match="unknown shape 'star': the lab has circle"):
        signed_distance("star", np.zeros(1, np.float32), np.zeros(1, np.float32))
