"""Advantages and losses against figures worked out by hand."""

import math

import pytest
import torch

from rewardzoo.trainers.losses import dpo_loss, group_advantages, grpo_loss, grpo_normalizer, k3

NAN = math.nan


def close(got, want):
    torch.testing.assert_close(
        torch.as_tensor(got), torch.as_tensor(want, dtype=torch.float32), rtol=1e-5, atol=1e-6
    )


# Rewards 1, 2, 3, 6: mean 3, unbiased variance (4 + 1 + 0 + 9) / 3.
GROUP_STD = math.sqrt(14 / 3)


@pytest.mark.parametrize(
    ("form", "want"),
    [
        ("group", [d / (GROUP_STD + 1e-4) for d in (-2, -1, 0, 3)]),
        ("none", [-2, -1, 0, 3]),
        ("rloo", [1 - 11 / 3, 2 - 10 / 3, 3 - 9 / 3, 6 - 6 / 3]),
        ("batch", [d / (GROUP_STD + 1e-4) for d in (-2, -1, 0, 3)]),
    ],
)
def test_advantage_by_hand(form, want):
    close(group_advantages(torch.tensor([[1.0, 2, 3, 6]]), form).advantages, [want])


def test_batch_form_takes_the_std_over_all_groups():
    # Items 0, 2, 10, 12: mean 6, unbiased variance (36 + 16 + 16 + 36) / 3.
    std = math.sqrt(104 / 3) + 1e-4
    close(
        group_advantages(torch.tensor([[0.0, 2], [10, 12]]), "batch").advantages,
        [[-1 / std, 1 / std], [-1 / std, 1 / std]],
    )


@pytest.mark.parametrize("form", ["group", "none", "rloo", "batch"])
def test_item_without_a_score_changes_nothing_for_the_others(form):
    whole = group_advantages(torch.tensor([[1.0, 2, 6]]), form)
    holed = group_advantages(torch.tensor([[1.0, NAN, 2, 6]]), form)
    close(holed.advantages[:, [0, 2, 3]], whole.advantages)
    close(holed.advantages[0, 1], 0.0)
    close(holed.weights, [[1, 0, 1, 1]])


def test_group_with_fewer_than_two_scores_contributes_nothing():
    got = group_advantages(torch.tensor([[NAN, 5.0, NAN], [NAN, NAN, NAN], [1.0, 2.0, NAN]]))
    close(got.weights, [[0, 0, 0], [0, 0, 0], [1, 1, 0]])
    close(got.advantages[:2], torch.zeros(2, 3))
    assert (got.too_few, got.zero_variance) == (2, 0)


@pytest.mark.parametrize("form", ["group", "none", "rloo", "batch"])
def test_group_of_equal_rewards_has_no_advantage_and_is_counted(form):
    got = group_advantages(torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.2]], dtype=torch.float64), form)
    assert torch.equal(got.advantages[0], torch.zeros(3))
    assert got.advantages[1].abs().min() > 0
    assert got.zero_variance == 1
    close(got.weights, torch.ones(2, 3))


def test_advantages_are_clipped_where_asked():
    got = group_advantages(torch.tensor([[0.0, 0.0, 9.0]]), "none", clip=4.0)
    close(got.advantages, [[-3, -3, 4]])


@pytest.mark.parametrize(
    ("rewards", "form", "message"),
    [
        (torch.zeros(4), "group", r"\(groups, items a group\), got \(4,\)"),
        (torch.tensor([[1.0, math.inf]]), "group", "give NaN"),
        (torch.zeros(1, 2), "z", "form must be .* got 'z'"),
    ],
)
def test_wrong_rewards_are_refused(rewards, form, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, form)


def test_k3_by_hand():
    close(k3(torch.tensor([0.0, 1.0]), torch.tensor([math.log(2), 1.0])), [2 - math.log(2) - 1, 0.0])


# Two sequences of three tokens; ratios 2, 1, 1/2 with advantage 1, and 2, 1/2, 1 (masked) with advantage -2.
LOG2 = math.log(2)
LOGPROBS = torch.tensor([[LOG2, 0.0, -LOG2], [LOG2, -LOG2, 0.0]])
OLD = torch.zeros(2, 3)
ADVANTAGES = torch.tensor([1.0, -2.0])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def test_clipped_token_loss_by_hand():
    loss, metrics = grpo_loss(LOGPROBS, ADVANTAGES, old_logprobs=OLD, mask=MASK, clip_low=0.2, clip_high=0.3)
    # -min(2, 1.3), -1, -min(.5, .8) | -min(-4, -2.6), -min(-1, -1.6)
    close(loss, (-1.3 - 1 - 0.5 + 4 + 1.6) / 5)
    close(metrics.clip_high, 1 / 5)  # ratio 2 with advantage 1
    close(metrics.clip_low, 1 / 5)  # ratio 1/2 with advantage -2
    close(metrics.ratio, (2 + 1 + 0.5 + 2 + 0.5) / 5)
    assert metrics.entropy.isnan()


@pytest.mark.parametrize(
    ("aggregation", "want"),
    [
        ("sequence", ((-1.3 - 1 - 0.5) / 3 + (4 + 1.6) / 2) / 2),
        ("dr_grpo", (-1.3 - 1 - 0.5 + 4 + 1.6) / (2 * 8)),
    ],
)
def test_aggregation_by_hand(aggregation, want):
    loss, _ = grpo_loss(
        LOGPROBS,
        ADVANTAGES,
        old_logprobs=OLD,
        mask=MASK,
        clip_high=0.3,
        aggregation=aggregation,
        max_tokens=8,
    )
    close(loss, want)


def test_sequence_ratio_is_the_geometric_mean():
    loss, metrics = grpo_loss(
        torch.tensor([[3 * LOG2, 0.0, -99.0]]),
        torch.tensor([1.0]),
        old_logprobs=torch.zeros(1, 3),
        mask=torch.tensor([[1, 1, 0]]),
        ratio="sequence",
        clip_high=5.0,
    )
    close(loss, -(2**1.5))
    close(metrics.ratio, 2**1.5)


def test_kl_enters_by_beta_and_is_measured_without():
    reference = torch.full((1, 2), LOG2)
    kl = 1 - LOG2
    arguments = {"reference_logprobs": reference, "entropy": torch.tensor([[1.0, 3.0]])}
    loss, metrics = grpo_loss(torch.zeros(1, 2), torch.tensor([0.5]), beta=0.1, **arguments)
    close(loss, -0.5 + 0.1 * kl)
    close(metrics.kl, kl)
    close(metrics.entropy, 2.0)
    loss, metrics = grpo_loss(torch.zeros(1, 2), torch.tensor([0.5]), **arguments)
    close(loss, -0.5)
    close(metrics.kl, kl)


def test_gradient_on_policy_is_advantage_times_score_function():
    logprobs = torch.randn(3, 4, requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 0.5])
    grpo_loss(logprobs, advantages)[0].backward()
    close(logprobs.grad, (-advantages[:, None] / 12).expand(3, 4))


def test_item_of_weight_0_has_no_gradient_and_no_share():
    logprobs = torch.randn(3, 4, requires_grad=True)
    weights = torch.tensor([1.0, 0.0, 1.0])
    reference = torch.randn(3, 4)
    loss, metrics = grpo_loss(
        logprobs, torch.tensor([1.0, 0.0, -1.0]), weights=weights, reference_logprobs=reference, beta=1.0
    )
    rest, others = grpo_loss(
        logprobs[[0, 2]], torch.tensor([1.0, -1.0]), reference_logprobs=reference[[0, 2]], beta=1.0
    )
    close(loss.detach(), rest.detach())
    close(metrics.kl, others.kl)
    loss.backward()
    assert torch.equal(logprobs.grad[1], torch.zeros(4))
    assert logprobs.grad[0].abs().min() > 0


def test_batch_in_which_nothing_counts_gives_0():
    loss, metrics = grpo_loss(torch.randn(2, 3), torch.zeros(2), weights=torch.zeros(2))
    assert loss == 0
    assert metrics.ratio == 0


def test_infinite_logprobs_in_the_padding_do_not_reach_the_gradient():
    logprobs = torch.tensor([[0.5, -math.inf]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    old = torch.tensor([[0.5, -math.inf]])
    loss, _ = grpo_loss(
        logprobs, torch.ones(1), old_logprobs=old, reference_logprobs=torch.zeros(1, 2), beta=1.0, mask=mask
    )
    loss.backward()
    assert loss.isfinite()
    assert torch.isfinite(logprobs.grad).all()


@pytest.mark.parametrize("aggregation", ["token", "sequence", "dr_grpo"])
def test_parts_of_a_batch_add_up_to_the_whole(aggregation):
    generator = torch.Generator().manual_seed(0)
    logprobs, old, reference, entropy = torch.randn(4, 6, 5, generator=generator).double()
    logprobs.requires_grad_()
    advantages, weights = torch.randn(6, generator=generator).double(), torch.tensor([1.0, 1, 0, 1, 1, 0])
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 1, 2, 5])[:, None]

    def loss(rows, **kwargs):
        return grpo_loss(
            logprobs[rows],
            advantages[rows],
            old_logprobs=old[rows],
            reference_logprobs=reference[rows],
            entropy=entropy[rows],
            weights=weights[rows],
            mask=mask[rows],
            beta=0.1,
            aggregation=aggregation,
            **kwargs,
        )

    whole, metrics = loss(slice(None))
    (gradient,) = torch.autograd.grad(whole, logprobs)
    parts = [slice(0, 1), slice(1, 4), slice(4, 6)]
    normalizer = sum(grpo_normalizer(weights[p], mask[p], aggregation) for p in parts)
    results = [loss(p, normalizer=normalizer) for p in parts]
    total = sum(part for part, _ in results)
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(total, logprobs)[0], gradient)
    for k, value in enumerate(metrics):
        torch.testing.assert_close(sum(part[k] for _, part in results), value)


def test_grpo_refuses_what_it_cannot_do():
    logprobs, advantages = torch.zeros(1, 2), torch.zeros(1)
    with pytest.raises(ValueError, match=r"beta is 0\.1, and there are no reference_logprobs"):
        grpo_loss(logprobs, advantages, beta=0.1)
    with pytest.raises(ValueError, match="ratio must be token or sequence, got 'word'"):
        grpo_loss(logprobs, advantages, ratio="word")
    with pytest.raises(ValueError, match=r"aggregation must be .* got 'mean'"):
        grpo_loss(logprobs, advantages, aggregation="mean")


# One pair of images of 4 tokens: S(chosen) = -10 - -12 = 2, S(rejected) = -15 - -14 = -1, D = 3.
PAIR = (torch.tensor([-10.0]), torch.tensor([-15.0]), torch.tensor([-12.0]), torch.tensor([-14.0]))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("settings", "want", "margin", "slope"),
    [
        ({"loss": "sigmoid", "beta": 0.5}, -log_sigmoid(1.5), 1.5, 2 / (1 + math.exp(1.5))),
        (
            {"loss": "sigmoid", "beta": 0.5, "label_smoothing": 0.1},
            -0.9 * log_sigmoid(1.5) - 0.1 * log_sigmoid(-1.5),
            1.5,
            2 / (1 + math.exp(1.5)),
        ),
        ({"loss": "sigmoid_norm", "beta": 2.0}, -log_sigmoid(1.5), 1.5, 2 / (1 + math.exp(1.5))),
        ({"loss": "ipo", "beta": 0.25}, (0.75 - 2) ** 2, 0.75, 1 - 0.75 / 2),
        ({"loss": "hinge", "beta": 0.1}, 0.7, 0.3, 1.0),
        ({"loss": "hinge", "beta": 0.5}, 0.0, 1.5, 0.0),
        (
            {"loss": "simpo", "beta": 2.0, "gamma": 0.5},
            -log_sigmoid(2.0),
            2.5,
            (1 + math.exp(-0.5)) / (1 + math.exp(2.0)),
        ),
        (
            {"loss": "sigmoid", "beta": 0.5, "sft": 0.3},
            -log_sigmoid(1.5) + 0.3 * 2.5,
            1.5,
            2 / (1 + math.exp(1.5)),
        ),
    ],
)
def test_preference_loss_by_hand(settings, want, margin, slope):
    loss, metrics = dpo_loss(*PAIR, tokens=4, **settings)
    close(loss, want)
    close(metrics.margin, margin)
    close(metrics.slope, slope)
    close(metrics.accuracy, 1.0)
    close(metrics.chosen_drift, 2.0)
    close(metrics.rejected_drift, -1.0)


def test_slope_is_1_where_policy_is_reference():
    same = (PAIR[0], PAIR[1], PAIR[0], PAIR[1])
    for loss in ("sigmoid", "sigmoid_norm", "ipo", "hinge"):
        close(dpo_loss(*same, tokens=4, loss=loss)[1].slope, 1.0)


def test_slope_is_the_gradient_against_that_at_margin_0():
    for loss in ("sigmoid", "sigmoid_norm", "ipo", "hinge"):
        gradients = []
        for chosen in (PAIR[0], PAIR[1] - PAIR[3] + PAIR[2]):  # the second makes D = 0
            chosen = chosen.clone().requires_grad_()
            value, metrics = dpo_loss(chosen, *PAIR[1:], tokens=4, loss=loss, beta=0.2)
            gradients.append((torch.autograd.grad(value, chosen)[0], metrics.slope))
        close(gradients[0][1], (gradients[0][0] / gradients[1][0]).abs().squeeze())


def test_simpo_needs_no_reference():
    loss, metrics = dpo_loss(PAIR[0], PAIR[1], tokens=4, loss="simpo", beta=2.0, gamma=0.5)
    close(loss, -log_sigmoid(2.0))
    close(metrics.chosen_drift, 0.0)


def test_pairs_in_parts_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(1)
    pairs = torch.randn(4, 7, generator=generator).double()
    whole, metrics = dpo_loss(*pairs, tokens=4, beta=0.3, label_smoothing=0.1, sft=0.2)
    parts = [
        dpo_loss(*pairs[:, rows], tokens=4, beta=0.3, label_smoothing=0.1, sft=0.2, normalizer=7)
        for rows in (slice(0, 3), slice(3, 4), slice(4, 7), slice(7, 7))
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    for k, value in enumerate(metrics):
        torch.testing.assert_close(sum(part[k] for _, part in parts), value)


def test_pair_of_weight_0_has_no_share():
    pairs = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    loss, metrics = dpo_loss(*pairs, tokens=4, weights=torch.tensor([1.0, 0.0, 1.0]))
    rest, others = dpo_loss(*pairs[:, [0, 2]], tokens=4)
    close(loss, rest)
    close(torch.stack(metrics), torch.stack(others))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "dpo"}, "loss must be .* got 'dpo'"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "no meaning for ipo"),
        ({"loss": "sigmoid", "gamma": 0.5}, "margin of simpo, got 0.5 for sigmoid"),
        ({"loss": "sigmoid"}, "only simpo goes without"),
    ],
)
def test_dpo_refuses_what_it_cannot_do(settings, message):
    with pytest.raises(ValueError, match=message):
        dpo_loss(PAIR[0], PAIR[1], tokens=4, **settings)
