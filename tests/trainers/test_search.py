from __future__ import annotations

import numpy as np
import pytest
import torch

from rewardzoo import LocalRewards
from rewardzoo.errors import ItemError, RewardZooError
from rewardzoo.rewards import Score
from rewardzoo.trainers.policies.policy import Sampling
from rewardzoo.trainers.prompts import Prompt
from rewardzoo.trainers.rollout import draw
from rewardzoo.trainers.search import best_of_n, parm_search

from .tiny_policy import TinyPolicy

PROMPTS = [Prompt("a red square"), Prompt("three blue ones"), Prompt("night")]
PLAIN = Sampling(guidance_scale=1.0)


class Brightness:
    """Likes bright pictures, by the mean of what is there; as PARM, finds one clear from its eighth token.

    What is drawn has no grey of 128, so that what is missing can be told.
    """

    name = "brightness"

    def __init__(self, *, clear_from: int = 8, scale: float = 255.0) -> None:
        self.clear_from, self.scale, self.asked = clear_from, scale, []

    def score_items(self, images, prompts, metadata):
        return [self._score(image, note) for image, note in zip(images, metadata, strict=True)]

    def _score(self, image, note):
        there = (image != 128).any(-1)
        tokens = int(there.sum()) // 64
        value = float(image[there].mean()) / self.scale
        self.asked.append((note.get("stage"), tokens))
        if note.get("stage") != "potential":
            return Score(value)
        clear = tokens >= self.clear_from
        return Score(value if clear else 0.0, {"clear": clear, "clarity": float(clear), "potential": value})

    def provenance(self):
        return {}


def scorer(model) -> LocalRewards:
    return LocalRewards.of([model])


def all_pictures(n: int) -> np.ndarray:
    policy = TinyPolicy()
    places = [(p, k) for p in range(len(PROMPTS)) for k in range(n)]
    batch = policy.encode([p.text for p in PROMPTS]).repeat_interleave(n)
    tokens = policy.sample(batch, torch.from_numpy(draw((0,), places, 16)), PLAIN).tokens
    return policy.decode(tokens).reshape(len(PROMPTS), n, 32, 32, 3)


def test_the_best_of_n_is_the_picture_that_scores_highest() -> None:
    found = best_of_n(TinyPolicy(), PROMPTS, scorer(Brightness()), "brightness", 6, sampling=PLAIN)
    pictures = all_pictures(6)
    means = pictures.mean((2, 3, 4))
    assert found.paths.tolist() == means.argmax(1).tolist()
    assert (found.images == pictures[np.arange(3), means.argmax(1)]).all()
    assert found.scores == pytest.approx(means.max(1) / 255, rel=1e-5)
    assert (found.saved, found.finished.all()) == (0.0, True)


def test_parm_gives_up_paths_without_potential_and_draws_fewer_tokens() -> None:
    model = Brightness()
    found = parm_search(
        TinyPolicy(),
        PROMPTS,
        scorer(model),
        "brightness",
        8,
        steps=[4, 8, 12],
        sampling=PLAIN,
        threshold=0.45,
    )
    first_half = np.where(
        (np.arange(16) < 8)[:, None], all_pictures(8)[:, :, ::8, ::8].reshape(3, 8, 16, 3), 0
    ).sum((2, 3)) / (8 * 3 * 255)
    promising = first_half >= 0.45
    assert promising.any(1).all()  # the test means nothing otherwise
    assert not promising.all()
    assert (found.finished == promising).all()
    given_up = int((~promising).sum())
    assert found.tokens_drawn == promising.sum() * 16 + given_up * 8
    assert found.saved == pytest.approx(given_up * 8 / (24 * 16))
    assert all(found.finished[p, path] for p, path in enumerate(found.paths))
    # Nobody is asked again once it was clear: 24 at four tokens, 24 at eight, none at twelve.
    assert [tokens for stage, tokens in model.asked if stage == "potential"] == [4] * 24 + [8] * 24


def test_where_no_path_has_potential_the_best_of_them_goes_on() -> None:
    model = Brightness(scale=1e6)
    found = parm_search(TinyPolicy(), PROMPTS, scorer(model), "brightness", 5, steps=[8], sampling=PLAIN)
    assert found.finished.sum(1).tolist() == [1, 1, 1]


def test_a_path_given_up_does_not_come_back_when_the_last_ones_turn_out_worse() -> None:
    class Late(Brightness):
        """Path 0 is clear first, and bad; the others are clear later, and worse."""

        def _score(self, image, note):
            if note.get("stage") != "potential":
                return Score(1.0)
            tokens = int((image != 128).any(-1).sum()) // 64
            if tokens == 4 and len(self.asked) == 0:
                self.asked.append(0)
                return Score(0.3, {"clear": True, "potential": 0.3})
            clear = tokens == 8
            return Score(0.0, {"clear": clear, "potential": 0.1})

    found = parm_search(
        TinyPolicy(), PROMPTS[:1], scorer(Late()), "brightness", 3, steps=[4, 8], sampling=PLAIN
    )
    assert found.finished.tolist() == [[False, True, True]]  # equally bad, and not told apart


def test_a_picture_is_the_same_whether_others_are_given_up_or_not() -> None:
    found = parm_search(
        TinyPolicy(),
        PROMPTS,
        scorer(Brightness()),
        "brightness",
        8,
        steps=[8],
        sampling=PLAIN,
        threshold=0.45,
    )
    pictures = all_pictures(8)
    assert (found.images == pictures[np.arange(3), found.paths]).all()


@pytest.mark.parametrize("steps", [[8, 4], [0], [16], [4, 4]])
def test_steps_that_do_not_rise_within_a_picture_are_refused(steps) -> None:
    with pytest.raises(ValueError, match="steps must rise"):
        parm_search(TinyPolicy(), PROMPTS, scorer(Brightness()), "brightness", 2, steps=steps, sampling=PLAIN)


def test_pictures_that_cannot_be_scored_are_not_chosen_and_none_at_all_is_an_error() -> None:
    class Picky(Brightness):
        def _score(self, image, note):
            return ItemError("too dark") if image.mean() < 110 else Score(-float(image.mean()))

    means = all_pictures(6).mean((2, 3, 4))
    assert (means >= 110).any(1).all()
    found = best_of_n(TinyPolicy(), PROMPTS, scorer(Picky()), "brightness", 6, sampling=PLAIN)
    assert found.paths.tolist() == np.where(means >= 110, means, np.inf).argmin(1).tolist()

    class Blind(Brightness):
        def _score(self, image, note):
            return ItemError("too dark")

    with pytest.raises(RewardZooError, match="no picture of 'a red square' could be scored: too dark"):
        best_of_n(TinyPolicy(), PROMPTS, scorer(Blind()), "brightness", 2, sampling=PLAIN)
