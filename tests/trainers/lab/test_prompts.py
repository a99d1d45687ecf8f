import re

import numpy as np
import pytest

from rewardzoo.trainers.lab import (
    HELD_OUT,
    VOCABULARY,
    Entity,
    Relation,
    Scene,
    parse_prompt,
    prompt_of,
    sample_prompts,
    sample_scene,
)
from rewardzoo.trainers.lab.prompts import MAX_TOKENS

SCENE = Scene(
    (Entity(2, "red", "circle"), Entity(1, "blue", "square"), Entity(3, "green", "cross")),
    (Relation.LEFT_OF, Relation.ABOVE),
)


def some_scenes(n):
    rng = np.random.default_rng(0)
    return [sample_scene(rng, split) for split in ("in_domain", "out_of_domain") for _ in range(n)]


def test_prompts_read_as_intended():
    assert prompt_of(SCENE) == (
        "two red circles left of a blue square, which is above three green crosses, on a plain background"
    )
    pair = Scene(SCENE.entities[:2], SCENE.relations[:1])
    assert prompt_of(pair, "short") == "a photo of two red circles left of a blue square"
    assert prompt_of(Scene(SCENE.entities[2:]), "short") == "a photo of three green crosses"


@pytest.mark.parametrize("style", ["compositional", "short"])
def test_every_prompt_reads_back_as_its_scene(style):
    rng = np.random.default_rng(1)
    for scene in some_scenes(1500):
        assert parse_prompt(prompt_of(scene, style)) == scene
        assert parse_prompt(f"  {prompt_of(scene, style, rng).upper()}.\n") == scene


def test_every_prompt_fits_33_tokens_of_the_vocabulary():
    rng = np.random.default_rng(2)
    used = set()
    for scene in some_scenes(1500):
        for style in ("compositional", "short"):
            tokens = re.findall(r"\w+|[^\w\s]", prompt_of(scene, style, rng))
            assert len(tokens) <= MAX_TOKENS
            used.update(tokens)
    assert used == set(VOCABULARY)
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_a_generator_paraphrases():
    rng = np.random.default_rng(3)
    assert len({prompt_of(SCENE, "compositional", rng) for _ in range(300)}) == 2**5
    assert len({prompt_of(SCENE, "short", rng) for _ in range(20)}) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read 'the end' .* expected a number"),
        ("two red elephants", r"cannot read 'elephants' .* expected a shape \(circle"),
        ("two pink circles", r"cannot read 'pink circles' .* expected a color \(red"),
        ("five red circles", "cannot read 'five red circles' .* expected a number"),
        ("a red circle behind a blue square", "cannot read 'behind a blue square' at the end"),
        ("a red circle above", "cannot read 'the end' .* expected a number"),
        ("a red circle and a blue square", "cannot read 'the end' .* expected 'with'"),
        (
            "a red circle above a blue square, and the red circle is below a red cross",
            r"cannot read 'the red circle' .*\(the blue square\)",
        ),
        (
            "a red circle above a blue square, which is on a plain background",
            "cannot read 'on a plain' .* expected a relation",
        ),
        ("a red circle above a red circle", "differ in color or shape"),
    ],
)
def test_a_prompt_that_cannot_be_read_says_where(text, message):
    with pytest.raises(ValueError, match=message):
        parse_prompt(text)


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="unknown style 'haiku': use 'compositional' or 'short'"):
        prompt_of(SCENE, "haiku")


def test_sampled_prompts_are_distinct_and_fixed_by_the_seed():
    prompts = sample_prompts(300, seed=7)
    assert len(set(prompts)) == 300
    assert prompts == sample_prompts(300, seed=7)
    assert prompts != sample_prompts(300, seed=8)


def test_the_splits_differ_in_form_and_in_combinations():
    inside, outside = sample_prompts(200, "in_domain"), sample_prompts(200, "out_of_domain")
    assert not any(p.startswith("a photo of") for p in inside)
    assert all(p.startswith("a photo of") for p in outside)
    assert not any(HELD_OUT.intersection(parse_prompt(p).combinations) for p in inside)
    related = [scene for scene in map(parse_prompt, outside) if scene.relations]
    assert related
    assert all(HELD_OUT.intersection(scene.combinations) for scene in related)


def test_asking_for_more_prompts_than_a_split_has_is_refused(monkeypatch):
    monkeypatch.setattr("rewardzoo.trainers.lab.prompts.sample_scene", lambda rng, split: SCENE)
    with pytest.raises(ValueError, match="different out_of_domain prompts, not 2: ask for fewer"):
        sample_prompts(2, "out_of_domain")
