import numpy as np
import pytest

from rewardzoo.trainers.lab import (
    COLORS,
    HELD_OUT,
    SHAPES,
    Entity,
    Relation,
    Scene,
    sample_scene,
)

RED_CIRCLE = Entity(2, "red", "circle")
BLUE_SQUARE = Entity(1, "blue", "square")


@pytest.mark.parametrize(
    ("count", "color", "shape", "message"),
    [
        (0, "red", "circle", "count must be 1 to 4, got 0"),
        (5, "red", "circle", "count must be 1 to 4, got 5"),
        (1, "pink", "circle", "unknown color 'pink': the lab has red"),
        (1, "red", "star", "unknown shape 'star': the lab has circle"),
    ],
)
def test_an_entity_outside_the_lab_is_refused(count, color, shape, message):
    with pytest.raises(ValueError, match=message):
        Entity(count, color, shape)


@pytest.mark.parametrize(
    ("entities", "relations", "message"),
    [
        ((), (), "1 to 3 entities, got 0"),
        ((RED_CIRCLE, BLUE_SQUARE), (), "2 entities take 1 relations, got 0"),
        ((RED_CIRCLE, Entity(1, "red", "circle")), (Relation.ABOVE,), "differ in color or shape"),
        ((Entity(4, "red", "circle"), Entity(3, "red", "cross")), (Relation.ABOVE,), "got 7"),
    ],
)
def test_an_impossible_scene_is_refused(entities, relations, message):
    with pytest.raises(ValueError, match=message):
        Scene(entities, relations)


def test_scenes_are_values_that_can_be_keys():
    scene = Scene((RED_CIRCLE, BLUE_SQUARE), (Relation.ABOVE,))
    assert {scene: 1}[Scene((Entity(2, "red", "circle"), BLUE_SQUARE), (Relation("above"),))] == 1


def test_inverting_a_relation_twice_changes_nothing_and_keeps_its_axis():
    for relation in Relation:
        assert relation.inverse is not relation
        assert relation.inverse.inverse is relation
        assert relation.inverse.axis == relation.axis


def test_a_scene_uses_both_sides_of_its_relation():
    scene = Scene((RED_CIRCLE, BLUE_SQUARE), (Relation.ABOVE,))
    assert list(scene.combinations) == [
        ("red", "circle", Relation.ABOVE),
        ("blue", "square", Relation.BELOW),
    ]


def test_about_15_percent_of_combinations_are_held_out_from_every_value_alike():
    assert len(HELD_OUT) == 14
    for position, values in enumerate((COLORS, SHAPES, Relation)):
        share = len(HELD_OUT) / len(values)
        for value in values:
            assert abs(sum(c[position] == value for c in HELD_OUT) - share) <= 1


def test_in_domain_scenes_never_use_what_is_held_out():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(2000)]
    assert not any(HELD_OUT.intersection(s.combinations) for s in scenes)
    seen = {c for s in scenes for c in s.combinations}
    assert len(seen) == 96 - len(HELD_OUT)


@pytest.mark.parametrize("entities", [None, 2, 3])
def test_out_of_domain_scenes_with_a_relation_use_something_held_out(entities):
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng, "out_of_domain", entities) for _ in range(500)]
    assert all(HELD_OUT.intersection(s.combinations) for s in scenes if s.relations)


def test_scenes_are_mixed_as_documented():
    rng = np.random.default_rng(2)
    scenes = [sample_scene(rng) for _ in range(3000)]
    shares = np.bincount([len(s.entities) for s in scenes], minlength=4)[1:] / len(scenes)
    np.testing.assert_allclose(shares, (0.2, 0.5, 0.3), atol=0.03)
    counts = np.bincount([e.count for s in scenes for e in s.entities], minlength=5)[1:]
    assert (counts / counts.sum() > 0.08).all()
    assert {len(sample_scene(rng, "out_of_domain").entities) for _ in range(300)} == {1, 2}


def test_the_number_of_entities_can_be_fixed():
    rng = np.random.default_rng(3)
    for n in (1, 2, 3):
        assert all(len(sample_scene(rng, entities=n).entities) == n for _ in range(20))


def test_a_seed_fixes_the_scenes():
    first, again, other = (np.random.default_rng(seed) for seed in (4, 4, 5))
    scenes = [sample_scene(first) for _ in range(20)]
    assert scenes == [sample_scene(again) for _ in range(20)]
    assert scenes != [sample_scene(other) for _ in range(20)]


def test_an_unknown_split_or_number_of_entities_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown split 'test': use one of in_domain"):
        sample_scene(rng, "test")
    with pytest.raises(ValueError, match="entities must be 1 to 3, got 4"):
        sample_scene(rng, entities=4)
