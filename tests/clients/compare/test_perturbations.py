import numpy as np
import pytest

from rewardzoo.clients.compare.perturbations import default_probes

PROMPTS = ["a red circle left of a blue square", "two green crosses", "a photo of a cat on a mat", "a dog"]
PARAPHRASES = {PROMPTS[1]: ["one pair of green crosses", PROMPTS[1]]}
PROBES = {probe.name: probe for probe in default_probes(PROMPTS, PARAPHRASES)}


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = np.full((height, width, 3), 90, np.uint8)
    image[10:30, 5:25] = (220, 30, 40)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_is_the_same_for_the_same_seed_and_item_and_changes_what_it_says(name: str) -> None:
    probe, image = PROBES[name], picture()
    kept = image.copy()
    for prompt in PROMPTS:
        once, again = (probe(image, prompt, "item 7", seed=3) for _ in range(2))
        assert (image == kept).all(), "the picture that was given is left as it is"
        if once is None or again is None:
            assert once is again
            continue
        assert (once[0] == again[0]).all()
        assert once[1] == again[1]
        assert once[0].shape == image.shape
        assert once[0].dtype == np.uint8
        changed = {"image": (once[0] != image).any(), "prompt": once[1] != prompt}
        assert [kind for kind, is_so in changed.items() if is_so] == [probe.changes]


@pytest.mark.parametrize("name", ["noise 24", "word order", "unrelated prompt", "crop 75%"])
def test_chance_depends_on_the_item_and_on_the_seed(name: str) -> None:
    long = "one two three four five six seven eight nine ten"
    probe = {p.name: p for p in default_probes([long, *(f"{long} {i}" for i in range(40))])}[name]
    found = [
        probe(picture(), long, item, seed)
        for item, seed in (("a", 0), ("b", 0), ("c", 0), ("a", 1), ("a", 2))
    ]
    assert len({(pair[0].tobytes(), pair[1]) for pair in found if pair}) >= 3


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (300, 2)])
@pytest.mark.parametrize("name", PROBES)
def test_no_shape_breaks_a_probe(name: str, shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    pair = PROBES[name](image, PROMPTS[0], "x")
    assert pair is None or pair[0].shape == image.shape


@pytest.mark.parametrize("prompt", ["", " ", "\n", "word", "x" * 5000, "é 漢字 🎈 words"])
@pytest.mark.parametrize("name", PROBES)
def test_no_prompt_breaks_a_probe(name: str, prompt: str) -> None:
    pair = PROBES[name](picture(), prompt, "x")
    assert pair is None or isinstance(pair[1], str)


def test_a_flip_is_expected_to_lower_only_where_the_prompt_names_a_side() -> None:
    image = picture()
    flip, sided = PROBES["flip"], PROBES["flip, prompt with a side"]
    assert (flip.expected, sided.expected) == ("same", "lower")
    for prompt, right in ((PROMPTS[0], sided), (PROMPTS[1], flip)):
        wrong = flip if right is sided else sided
        assert wrong(image, prompt, "x") is None
        pair = right(image, prompt, "x")
        assert pair is not None
        assert (pair[0] == image[:, ::-1]).all()
    assert sided(image, "a bright copyright notice", "x") is None


def test_word_order_keeps_the_words() -> None:
    pair = PROBES["word order"](picture(), PROMPTS[2], "x")
    assert pair is not None
    assert sorted(pair[1].split()) == sorted(PROMPTS[2].split())
    assert PROBES["word order"](picture(), "dog dog", "x") is None


def test_an_unrelated_prompt_is_another_one_of_the_set_with_few_words_in_common() -> None:
    others = [f"a photo of a cat number {i}" for i in range(20)] + ["two green crosses"] * 2
    probe = {p.name: p for p in default_probes(["a photo of a cat", *others])}["unrelated prompt"]
    found = [probe(picture(), "a photo of a cat", str(i)) for i in range(20)]
    assert all(pair and pair[1] in others for pair in found)
    assert sum(pair is not None and pair[1] == "two green crosses" for pair in found) >= 4


def test_a_paraphrase_is_one_that_was_given_and_never_the_prompt_itself() -> None:
    pair = PROBES["paraphrase"](picture(), PROMPTS[1], "x")
    assert pair is not None
    assert pair[1] == "one pair of green crosses"
    assert PROBES["paraphrase"](picture(), PROMPTS[0], "x") is None


def test_probes_that_need_other_prompts_are_left_out_without_them() -> None:
    assert {"unrelated prompt", "paraphrase"}.isdisjoint(p.name for p in default_probes(["one prompt"]))


def test_text_covers_a_third_of_the_picture_at_most() -> None:
    image = picture(64, 64)
    pair = PROBES["text: the prompt"](image, "many words " * 60, "x")
    assert pair is not None
    rows = (pair[0] != image).any(axis=(1, 2))
    assert 5 <= rows.sum() <= 64 / 3 + 3
