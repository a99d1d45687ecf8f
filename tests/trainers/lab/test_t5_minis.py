from pathlib import Path

import pytest
import torch

from rewardzoo.rewards import _clip
from rewardzoo.rewards._clip_t5 import ClipT5
from rewardzoo.trainers.lab.pair_batches import PairStream
from rewardzoo.trainers.lab.prompts import VOCABULARY
from rewardzoo.trainers.lab.t5_minis import QUESTION, T5Probes, train_vqascore, vqascore_loss
from rewardzoo.trainers.lab.training import GRID, SIZE, known, to_pixels


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> ClipT5:
    out = tmp_path_factory.mktemp("vqascore")
    train_vqascore(out, 2, 4, 0)
    return ClipT5.from_folder(out / "checkpoint", out / "spiece.model", _clip.MINI["vision_config"]).float()


def test_what_stands_around_a_prompt_is_one_piece_a_stretch(net) -> None:
    prompt = " ".join(VOCABULARY).replace(" ,", ",")
    known_words, unknown = (net.question_ids(QUESTION.format(text)) for text in (prompt, "a zebra"))
    assert known_words.index(-1) == 2  # behind a stretch and its end
    assert net.pieces.unk_id() not in known_words
    assert unknown.count(net.pieces.unk_id()) == 1
    # Behind the image a stretch, the prompt, a stretch and an end.
    assert len(net.question_ids(QUESTION.format("a red circle"))) == 3 + 1 + 3 + 2
    assert len(net.encode("Yes")) == len(net.encode("No")) == 2


def test_the_sentinels_of_t5_can_be_read(net) -> None:
    assert max(net.encode("<extra_id_0>")) < net.shared.num_embeddings


def test_the_start_sees_with_the_eyes_of_clipscore(net, tmp_path: Path) -> None:
    eyes = known("clipscore", tmp_path / "vqascore").net.vision_model.state_dict()
    for key, weight in net.vision_tower.state_dict().items():
        torch.testing.assert_close(weight, eyes[key], atol=0.02, rtol=0.1)  # two steps were made


def test_the_loss_counts_answers_and_to_begin_with_what_the_probes_read(net) -> None:
    batch = next(iter(PairStream(4, 0, SIZE, GRID)))
    probes = T5Probes(net)
    with torch.no_grad():
        early, late = (vqascore_loss(net, probes, batch, progress) for progress in (0.5, 0.9))
    assert early[0] > late[0] > 0
    assert early[1] == late[1]


def test_the_share_that_is_told_right_is_that_of_the_rewards_own_scores(net) -> None:
    batch = next(iter(PairStream(8, 0, SIZE, GRID)))
    own = torch.arange(16)
    picture = torch.cat([own, own.roll(8)])
    questions = [net.question_ids(QUESTION.format(prompt)) for prompt in batch.prompts] * 2
    answers = [net.encode("Yes")] * 16 + [net.encode("No")] * 16
    inputs = net.collate([*to_pixels(batch.images)], picture.tolist(), questions, answers)
    with torch.no_grad():
        yes, no = net(inputs).square().chunk(2)
        _, right = vqascore_loss(net, T5Probes(net), batch, 0.9)
    assert right == (yes > 1 - no).float().mean().item()
