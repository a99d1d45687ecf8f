import pytest
import torch
from torch import nn

from rewardzoo.rewards import specs
from rewardzoo.trainers.lab import train_minis
from rewardzoo.trainers.lab.training import (
    by_pair,
    comparisons,
    make_optimizers,
    pictures_to_judge,
    prefer_own,
    right_share,
    train,
)

SCORES = torch.tensor([[[3.0, 1.0], [2.0, 5.0]]])  # both prompts of one pair prefer their own picture


def test_every_mini_of_the_zoo_has_a_schedule() -> None:
    minis = {spec.name for spec in specs() if any(v.is_mini for v in spec.variants)}
    assert minis - {"orm", "parm"} == set(train_minis.SCHEDULES)  # those two come from `critic_minis`


def test_a_name_without_a_mini_is_refused_with_those_that_have_one(tmp_path) -> None:
    with pytest.raises(train_minis.typer.BadParameter, match="no mini 'mps': there are hpsv2"):
        train_minis.main(["mps"], out=tmp_path)


def test_prompts_are_read_with_strangers_first_and_with_their_partners_then() -> None:
    assert pictures_to_judge(4, 0.0).tolist() == [0, 1, 2, 3, 3, 0, 1, 2]
    assert pictures_to_judge(4, 0.5).tolist() == [0, 1, 2, 3, 2, 3, 0, 1]


def test_values_are_put_in_the_order_of_prompt_and_picture() -> None:
    picture = pictures_to_judge(4, 0.5)
    prompt = torch.arange(4).repeat(2)
    table = by_pair(10 * prompt + picture)
    assert table.tolist() == [[[0, 2], [20, 22]], [[11, 13], [31, 33]]]


def test_a_pair_is_compared_by_picture_and_by_prompt() -> None:
    own, other = comparisons(SCORES)
    assert own.tolist() == [[[3, 5]], [[3, 5]]]
    assert other.tolist() == [[[1, 2]], [[2, 1]]]
    assert right_share(SCORES) == 1
    assert right_share(SCORES.flip(1)) == 0
    assert prefer_own(SCORES) < 0.3 < 2 < prefer_own(SCORES.flip(1))


def test_matrices_of_layers_go_to_muon_and_tables_heads_and_the_probe_to_adamw() -> None:
    net = nn.ModuleDict(
        {
            "layers": nn.ModuleList([nn.Linear(2, 3)]),
            "relative_attention_bias": nn.ModuleDict({"layers": nn.ModuleList([nn.Embedding(2, 2)])}),
            "head": nn.Linear(3, 4),
        }
    )
    muon, adamw = make_optimizers(net, nn.Linear(5, 6), 1e-3)
    shapes = [sorted(tuple(w.shape) for g in o.param_groups for w in g["params"]) for o in (muon, adamw)]
    assert shapes == [[(3, 2)], [(2, 2), (3,), (4,), (4, 3), (6,), (6, 5)]]


def test_training_lowers_the_loss_and_leaves_the_net_frozen() -> None:
    torch.manual_seed(0)
    net, losses = nn.ModuleDict({"layers": nn.Linear(3, 3)}), []

    def loss_of(batch, progress):
        assert len(batch.prompts) == 4
        losses.append((net["layers"](torch.ones(3)) - 1).square().mean())
        return losses[-1], 0.5

    train(net, loss_of, 30, pairs=2, seed=0, lr=0.05, warmup=5)
    assert losses[-1] < 0.5 * losses[0]
    assert not any(weight.requires_grad for weight in net.parameters())
