from collections import Counter

import numpy as np
import pytest

from rewardzoo.trainers.lab import (
    CATEGORIES,
    HELD_OUT,
    Entity,
    Relation,
    Scene,
    corrupt,
    parse_prompt,
    sample_scene,
    triples,
)

ONE = Scene((Entity(4, "red", "circle"),))
TWO = Scene((Entity(2, "red", "circle"), Entity(1, "blue", "square")), (Relation.ABOVE,))


def differences(a, b):
    """Count what differs between two scenes, by category."""
    found = Counter(relation=sum(x != y for x, y in zip(a.relations, b.relations, strict=True)))
    for x, y in zip(a.entities, b.entities, strict=True):
        for attribute in ("color", "shape", "count"):
            found[attribute] += getattr(x, attribute) != getattr(y, attribute)
    return +found


@pytest.mark.parametrize("category", CATEGORIES)
def test_corruption_changes_its_category_alone(category):
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = sample_scene(rng, entities=int(rng.integers(2, 4)))
        changed = differences(scene, corrupt(scene, rng, category))
        assert set(changed) == {category}
        assert changed[category] == 1 or (category == "color" and changed[category] == 2)


def test_counts_change_by_one():
    rng = np.random.default_rng(1)
    counts = {corrupt(TWO, rng, "count").entities[0].count for _ in range(50)}
    assert counts == {1, 2, 3}
    assert corrupt(ONE, rng, "count").entities[0].count == 3


def test_a_relation_is_turned_round():
    assert corrupt(TWO, np.random.default_rng(2), "relation").relations == (Relation.BELOW,)


def test_colors_of_related_entities_are_sometimes_exchanged():
    rng = np.random.default_rng(3)
    pairs = [tuple(e.color for e in corrupt(TWO, rng, "color").entities) for _ in range(200)]
    assert 0.2 < pairs.count(("blue", "red")) / 200 < 0.5


def test_colors_are_not_exchanged_between_entities_of_one_shape():
    scene = Scene((Entity(1, "red", "cross"), Entity(1, "blue", "cross")), (Relation.LEFT_OF,))
    rng = np.random.default_rng(4)
    for _ in range(100):
        assert differences(scene, corrupt(scene, rng, "color")) == {"color": 1}


def test_without_a_category_all_that_apply_are_drawn():
    rng = np.random.default_rng(5)

    def drawn(scene):
        return {c for _ in range(60) for c in differences(scene, corrupt(scene, rng))}

    assert drawn(TWO) == set(CATEGORIES)
    assert drawn(ONE) == set(CATEGORIES) - {"relation"}


def test_a_category_that_does_not_apply_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="one entity states no relation"):
        corrupt(ONE, rng, "relation")
    with pytest.raises(ValueError, match="unknown category 'size': use one of color"):
        corrupt(ONE, rng, "size")


@pytest.mark.parametrize("split", ["in_domain", "out_of_domain"])
def test_triples_say_what_is_wrong(split):
    for triple in triples(60, seed=6, split=split, size=48):
        assert parse_prompt(triple.prompt) == triple.scene
        assert set(differences(triple.scene, triple.wrong_scene)) == {triple.category}
        assert triple.right.shape == triple.wrong.shape == (48, 48, 3)
        held_out = HELD_OUT.intersection(triple.scene.combinations)
        assert bool(held_out) == (split == "out_of_domain" and bool(triple.scene.relations))


def test_a_seed_fixes_the_triples():
    for a, b in zip(triples(5, seed=7), triples(5, seed=7), strict=True):
        assert (a.prompt, a.category, a.wrong_scene) == (b.prompt, b.category, b.wrong_scene)
        np.testing.assert_array_equal(a.right, b.right)
        np.testing.assert_array_equal(a.wrong, b.wrong)
    assert [t.prompt for t in triples(5, seed=7)] != [t.prompt for t in triples(5, seed=8)]
