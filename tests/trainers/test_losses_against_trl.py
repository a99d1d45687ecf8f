"""Our losses and advantages against those that TRL's trainers compute, on the same numbers.

TRL's trainers compute within methods that read tensors and settings from `self`: these are called on a
stand-in that has them.
"""

from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from rewardzoo.trainers.losses import dpo_loss, group_advantages, grpo_loss

trl = pytest.importorskip("trl")

B, N = 6, 5
AGGREGATIONS = {"dapo": "token", "bnpo": "token", "grpo": "sequence", "dr_grpo": "dr_grpo"}


@pytest.fixture(scope="module")
def numbers():
    g = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        logprobs=torch.randn(B, N, generator=g) - 2,
        old=torch.randn(B, N, generator=g) * 0.4 - 2,
        reference=torch.randn(B, N, generator=g) * 0.4 - 2,
        entropy=torch.rand(B, N, generator=g),
        advantages=torch.randn(B, generator=g),
        mask=torch.arange(N) < torch.tensor([5, 3, 4, 1, 2, 5])[:, None],
    )


@pytest.fixture
def one_process():
    return SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
    )


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", list(AGGREGATIONS))
def test_grpo_loss_and_metrics_are_those_of_trl(loss_type, level, numbers, one_process):
    trainer = SimpleNamespace(
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        accelerator=one_process,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=0.1,
        epsilon_low=0.2,
        epsilon_high=0.28,
        loss_type=loss_type,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=9,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (numbers.logprobs, numbers.entropy, None),
    )
    ids = torch.zeros(B, N, dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": torch.ones_like(ids),
        "completion_ids": ids,
        "completion_mask": numbers.mask.long(),
        "advantages": numbers.advantages,
        "old_per_token_logps": numbers.old,
        "ref_per_token_logps": numbers.reference,
        "num_items_in_batch": numbers.mask.sum(),
    }
    theirs = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    ours, metrics = grpo_loss(
        numbers.logprobs,
        numbers.advantages,
        old_logprobs=numbers.old,
        reference_logprobs=numbers.reference,
        entropy=numbers.entropy,
        mask=numbers.mask,
        beta=0.1,
        clip_low=0.2,
        clip_high=0.28,
        ratio=level,
        aggregation=AGGREGATIONS[loss_type],
        max_tokens=9,
    )
    torch.testing.assert_close(ours, theirs)
    if AGGREGATIONS[loss_type] == "token":  # TRL averages metrics over tokens, whatever the loss does
        assert metrics.kl == pytest.approx(trainer._metrics["train"]["kl"][0])
        assert metrics.entropy == pytest.approx(trainer._metrics["train"]["entropy"][0])
        if level == "token":
            assert metrics.clip_low == pytest.approx(trainer._metrics["train"]["clip_ratio/low_mean"][0])
            assert metrics.clip_high == pytest.approx(trainer._metrics["train"]["clip_ratio/high_mean"][0])


TOKENS = [[1, 2]] * 16


def trl_advantages(trainer_class, generated, rewards, one_process, **settings):
    groups, size = rewards.shape
    count = groups * size
    trainer = MagicMock(
        accelerator=one_process,
        environment_factories=None,
        environments=None,
        tools=None,
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        use_vllm=False,
        beta=0.0,
        num_generations=size,
        reward_weights=torch.ones(1),
        reward_func_names=["r"],
        _pending_extra_logs={},
        _pending_metrics={},
        _metrics=defaultdict(lambda: defaultdict(list)),
        args=MagicMock(gradient_accumulation_steps=1),
        **settings,
    )
    trainer._tokenizer.pad_token_id = 0
    trainer._generate.return_value = generated
    trainer._calculate_rewards.return_value = rewards.reshape(count, 1)
    trainer._get_per_token_logps_and_entropies.return_value = (torch.zeros(count, 2), None, None)
    inputs = [{"prompt": ""}] * count
    advantages = trainer_class._generate_and_score_completions(trainer, inputs)["advantages"]
    return advantages.reshape(groups, size)


REWARDS = torch.tensor(
    [[1.0, 2, 3, 6], [0.5, torch.nan, 0.25, 9], [4, 4, 4, 4], [torch.nan, torch.nan, -1, -1.5]]
)


@pytest.mark.parametrize("form", ["group", "batch", "none"])
def test_group_advantages_are_those_of_trl(form, one_process):
    theirs = trl_advantages(
        trl.GRPOTrainer,
        (TOKENS, TOKENS, None, [""] * 16, None, {}, None, None),
        REWARDS,
        one_process,
        scale_rewards=form,
        multi_objective_aggregation="sum_then_normalize",
    )
    torch.testing.assert_close(group_advantages(REWARDS, form).advantages, theirs)


def test_leave_one_out_advantages_are_those_of_trl(one_process):
    theirs = trl_advantages(
        trl.RLOOTrainer,
        (TOKENS, TOKENS, [""] * 16),
        REWARDS,
        one_process,
        normalize_advantages=False,
        reward_clip_range=None,
    )
    torch.testing.assert_close(group_advantages(REWARDS, "rloo").advantages, theirs)


def pairs(generator_seed=1):
    g = torch.Generator().manual_seed(generator_seed)
    return torch.randn(2 * B, N, generator=g) - 2, torch.randn(2 * B, N, generator=g) - 2


@pytest.mark.parametrize(
    ("loss_type", "beta"), [("sigmoid", 0.1), ("hinge", 0.3), ("ipo", 0.2), ("sigmoid_norm", 10)]
)
@pytest.mark.parametrize("sft", [0.0, 0.3])
def test_dpo_loss_and_metrics_are_those_of_trl(loss_type, beta, sft, one_process):
    logprobs, reference = pairs()
    trainer = SimpleNamespace(
        accelerator=one_process,
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type, "sft"],
        loss_weights=[1.0, sft],
        beta=beta,
        use_weighting=False,
        _total_train_tokens=0,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    # The token before the first of the completion is the prompt's, and its mask is 0.
    completion_mask = torch.cat([torch.zeros(2 * B, 1), torch.ones(2 * B, N)], 1).long()
    outputs = SimpleNamespace(
        log_probs=logprobs,
        entropy=torch.zeros_like(logprobs),
        mean_logits=torch.zeros_like(logprobs),
        is_top1=torch.zeros_like(logprobs, dtype=torch.bool),
    )
    inputs = {
        "input_ids": torch.zeros(2 * B, N + 1, dtype=torch.long),
        "completion_mask": completion_mask,
        "attention_mask": torch.ones_like(completion_mask),
        "ref_chosen_logps": reference[:B].sum(1),
        "ref_rejected_logps": reference[B:].sum(1),
    }
    theirs = trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)
    ours, metrics = dpo_loss(
        *logprobs.sum(1).chunk(2), *reference.sum(1).chunk(2), tokens=N, loss=loss_type, beta=beta, sft=sft
    )
    torch.testing.assert_close(ours, theirs)
    assert metrics.accuracy == pytest.approx(trainer._metrics["eval"]["rewards/accuracies"][0])
    if loss_type in ("sigmoid", "hinge"):
        assert metrics.margin == pytest.approx(trainer._metrics["eval"]["rewards/margins"][0])


@pytest.mark.parametrize(("loss_type", "smoothing"), [("simpo", 0.0), ("simpo", 0.2)])
def test_simpo_is_that_of_trl(loss_type, smoothing, one_process, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOTrainer

    logprobs, _ = pairs()
    trainer = SimpleNamespace(
        accelerator=one_process,
        alpha=0.0,
        loss_type=loss_type,
        beta=2.0,
        simpo_gamma=0.5,
        label_smoothing=smoothing,
    )
    theirs, _, _ = CPOTrainer.cpo_loss(trainer, *logprobs.mean(1).chunk(2))
    ours, _ = dpo_loss(
        *logprobs.sum(1).chunk(2),
        tokens=N,
        loss=loss_type,
        beta=2.0,
        gamma=0.5,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(ours, theirs.mean())


def test_label_smoothing_is_that_of_trl(one_process, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOTrainer

    logprobs, reference = pairs()
    gains = (logprobs - reference).sum(1)
    trainer = SimpleNamespace(
        accelerator=one_process, alpha=0.0, loss_type="sigmoid", beta=0.3, label_smoothing=0.2
    )
    theirs, _, _ = CPOTrainer.cpo_loss(trainer, *gains.chunk(2))
    ours, _ = dpo_loss(
        *logprobs.sum(1).chunk(2), *reference.sum(1).chunk(2), tokens=N, beta=0.3, label_smoothing=0.2
    )
    torch.testing.assert_close(ours, theirs.mean())
