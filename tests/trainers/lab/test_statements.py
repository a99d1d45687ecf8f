import numpy as np
import torch
from torch import nn

from rewardzoo.rewards._nouns import matched_phrases
from rewardzoo.rewards.blipvqa import MINI_CONFIG
from rewardzoo.trainers.lab import (
    Entity,
    Relation,
    Scene,
    judge,
    parse_prompt,
    prompt_of,
    render,
    sample_scene,
)
from rewardzoo.trainers.lab.pair_batches import PairStream
from rewardzoo.trainers.lab.pairs import corrupt
from rewardzoo.trainers.lab.seeing import ReadingProbe
from rewardzoo.trainers.lab.statements import VerdictProbe, false_elsewhere, truths
from rewardzoo.trainers.lab.training import pictures_to_judge

PATTERNS = MINI_CONFIG["phrases"]


def test_every_statement_of_a_prompt_has_a_phrase_entities_first() -> None:
    rng = np.random.default_rng(0)
    for split, style in (("in_domain", "compositional"), ("out_of_domain", "short")):
        for _ in range(200):
            scene = sample_scene(rng, split)
            phrases = matched_phrases(prompt_of(scene, style, rng), PATTERNS)
            assert len(phrases) == len(scene.entities) + len(scene.relations), phrases
            found = [parse_prompt(phrase).entities[0] for phrase in phrases[: len(scene.entities)]]
            assert tuple(found) == scene.entities
            for phrase, relation in zip(phrases[len(scene.entities) :], scene.relations, strict=True):
                if not phrase.startswith("the "):
                    assert parse_prompt(phrase).relations == (relation,)


def test_what_is_said_to_hold_in_another_scene_is_what_the_judge_sees() -> None:
    rng = np.random.default_rng(1)
    checked = dict.fromkeys((True, False), 0)
    for _ in range(150):
        scene = sample_scene(rng)
        shown = corrupt(scene, rng) if rng.random() < 0.8 else sample_scene(rng)
        picture = render(shown, rng, 128)
        phrases = matched_phrases(prompt_of(scene), PATTERNS)
        for phrase, holds in zip(phrases, truths(scene, shown), strict=True):
            if holds is not None and not phrase.startswith("the "):
                assert judge(picture, phrase).correct == holds, (phrase, shown)
                checked[holds] += 1
    assert min(checked.values()) > 50


def test_a_relation_of_kinds_in_another_number_is_left_open() -> None:
    circle, square = Entity(1, "red", "circle"), Entity(2, "blue", "square")
    asked = Scene((circle, square), (Relation.ABOVE,))
    more = Scene((circle, Entity(3, "blue", "square")), (Relation.ABOVE,))
    assert truths(asked, more) == [True, False, None]
    assert truths(asked, Scene((square, circle), (Relation.BELOW,))) == [True, True, True]


def test_phrases_are_true_of_their_own_picture_and_false_of_the_other() -> None:
    batch = next(iter(PairStream(8, 5, 128, 8)))
    found = false_elsewhere(batch, 0.5)
    assert {own for own, _, _ in found} == set(range(16))
    for own, other, phrase in found:
        assert other == (own + 8) % 16
        if not phrase.startswith("the "):
            assert judge(batch.images[own], phrase).correct
            assert not judge(batch.images[other], phrase).correct


def test_the_verdict_probe_reads_each_statement_where_it_ends() -> None:
    prompts = [
        "a red circle above a blue square",
        "a red circle and a blue square , with the red circle below the blue square",
    ]
    words = {word: i for i, word in enumerate(dict.fromkeys(" ".join(["<pad>", *prompts]).split()))}
    rows = [torch.tensor([words[word] for word in prompt.split()]) for prompt in prompts * 2]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    picture = pictures_to_judge(2, 0.5)  # their own, and then each other's, in which the relation is false
    layer = nn.Identity()
    reading = ReadingProbe(2, len(words), words, places=layer, counts=layer)
    probe = VerdictProbe(2, reading, layer)
    with torch.no_grad():
        for k, linear in enumerate((probe.entity, probe.relation)):
            linear.weight.zero_()[0, k] = 50
            linear.bias.zero_()
    said = torch.zeros(*ids.shape, 2)
    said[:, [2, 6], 0] = 1
    for row, end in enumerate((6, 15, 6, 15)):
        said[row, end, 1] = 1 if row < 2 else -1
    layer(said)
    assert probe.loss(ids, picture, prompts) < 1e-6
    for row, place, sort in ((0, 2, 0), (3, 15, 1)):
        wrong = said.clone()
        wrong[row, place, sort] *= -1
        layer(wrong)
        assert probe.loss(ids, picture, prompts) > 1
