import pytest

from rewardzoo.trainers.lab import parse_prompt, sample_prompts
from rewardzoo.trainers.lab.paraphrases import paraphrases


@pytest.mark.parametrize("split", ["in_domain", "out_of_domain"])
def test_paraphrases_say_the_same_in_other_words(split):
    prompts = sample_prompts(40, split, seed=3)
    found = paraphrases(prompts, n=3)
    assert list(found) == prompts
    for prompt, others in found.items():
        assert 1 <= len(others) <= 3
        assert prompt not in others
        assert {parse_prompt(other) for other in others} == {parse_prompt(prompt)}


def test_they_are_the_same_for_a_prompt_whatever_stands_beside_it():
    prompts = sample_prompts(5, seed=1)
    assert paraphrases(prompts)[prompts[2]] == paraphrases(prompts[2:3])[prompts[2]]
    assert paraphrases(prompts, seed=1) != paraphrases(prompts, seed=2)
