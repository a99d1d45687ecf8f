"""The losses of GRPO and DPO: tensors in, a scalar and what to log out. No loop, no model, no I/O.

A loss is a weighted sum divided by a `normalizer`. Without one it is that of the tensors at hand; where a
batch is spread over micro-batches or ranks, give each part the normaliser of the whole, and the parts' losses
(and their metrics) add up to the whole batch's exactly. DDP and FSDP average gradients over ranks: multiply
the loss by their number.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

AdvantageForm = Literal["group", "batch", "none", "rloo"]
Ratio = Literal["token", "sequence"]
Aggregation = Literal["token", "sequence", "dr_grpo"]
PreferenceLoss = Literal["sigmoid", "ipo", "hinge", "sigmoid_norm", "simpo"]


class Advantages(NamedTuple):
    """Advantages of P groups of G items, and how many groups teach nothing.

    `advantages` float32 (P, G); `weights` float32 (P, G), 1 where an item counts and 0 where it was not
    scored or is alone in its group; `zero_variance`, the groups whose items all got the same reward;
    `too_few`, those with fewer than two scored items.
    """

    advantages: Tensor
    weights: Tensor
    zero_variance: int
    too_few: int


class GRPOMetrics(NamedTuple):
    """Scalars averaged as the loss is: `kl` to the reference, the share of tokens clipped from below and
    from above, the mean `ratio` to the policy that sampled, the mean `entropy` (NaN where none was given).
    """

    kl: Tensor
    clip_low: Tensor
    clip_high: Tensor
    ratio: Tensor
    entropy: Tensor


class DPOMetrics(NamedTuple):
    """Scalars averaged as the loss is.

    `margin`, what the loss is a function of: beta times the difference of the log-ratios, in the loss's own
    length normalisation (IPO: without beta); `accuracy`, the share of margins above 0; `slope`, the size of
    the gradient through the margin against that at margin 0: 1 at the start, 0 where a pair teaches no more;
    `chosen_drift` and `rejected_drift`, log-probability (nats an image) gained since the reference.
    """

    margin: Tensor
    accuracy: Tensor
    slope: Tensor
    chosen_drift: Tensor
    rejected_drift: Tensor


def group_advantages(
    rewards: Tensor, form: AdvantageForm = "group", *, eps: float = 1e-4, clip: float | None = None
) -> Advantages:
    """Compare each of G items with its group: rewards (P, G), NaN where an item was not scored.

    - `group`: (r - mean) / (std + eps), with mean and unbiased std of the group (DeepSeekMath, arXiv
      2402.03300);
    - `batch`: the same with the std over all items that count; give the groups of the whole global step;
    - `none`: r - mean (Dr. GRPO, arXiv 2503.20783);
    - `rloo`: r less the mean of the others (arXiv 2402.14740).

    What was not scored leaves the baseline and gets advantage 0 and weight 0, and so does an item alone in
    its group. `clip` bounds advantages to [-clip, clip].

    Raises:
        ValueError: rewards are not (P, G), or one is infinite; or an unknown form.
    """
    if rewards.ndim != 2:
        raise ValueError(f"rewards must be (groups, items a group), got {tuple(rewards.shape)}")
    if torch.isinf(rewards).any():
        raise ValueError("a reward is infinite: give NaN for an item that has none")
    scored = ~torch.isnan(rewards)
    count = scored.sum(1, keepdim=True)
    counts = scored & (count >= 2)  # (P, G)
    r = torch.where(counts, rewards, 0.0).double()
    centred = torch.where(counts, r - r.sum(1, keepdim=True) / count.clamp(min=1), 0.0)
    lowest = rewards.nan_to_num(nan=torch.inf).amin(1)
    highest = rewards.nan_to_num(nan=-torch.inf).amax(1)
    varied = (highest > lowest)[:, None]
    if form == "group":
        std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        advantages = centred / (std + eps)
    elif form == "batch":
        kept = r[counts]
        std = kept.std() if len(kept) > 1 else kept.new_zeros(())
        advantages = centred / (std + eps)
    elif form == "none":
        advantages = centred
    elif form == "rloo":
        advantages = centred * count / (count - 1).clamp(min=1)
    else:
        raise ValueError(f"form must be group, batch, none or rloo; got {form!r}")
    # Rounding of a mean of equal rewards must not become an advantage.
    advantages = torch.where(varied, advantages, 0.0)
    if clip is not None:
        advantages = advantages.clamp(-clip, clip)
    enough = count[:, 0] >= 2
    return Advantages(
        advantages.float(),
        counts.float(),
        int((enough & ~varied[:, 0]).sum()),
        int((~enough).sum()),
    )


def grpo_normalizer(
    weights: Tensor, mask: Tensor, aggregation: Aggregation = "token", *, max_tokens: int | None = None
) -> Tensor:
    """Return what `grpo_loss` divides by, for weights (B,) and mask (B, N); add it up over parts and ranks.

    - `token`: the tokens that count, so that each weighs the same (DAPO, arXiv 2503.14476);
    - `sequence`: the sequences that count; a token weighs less in a longer one (DeepSeekMath);
    - `dr_grpo`: the sequences that count times the constant `max_tokens` (Dr. GRPO; the mask's N without it).

    Images of N tokens each give the same loss in all three; they differ with text of any length beside.
    """
    if aggregation == "token":
        return (weights[:, None] * mask).sum()
    if aggregation == "sequence":
        return weights.sum()
    if aggregation == "dr_grpo":
        return weights.sum() * (mask.shape[1] if max_tokens is None else max_tokens)
    raise ValueError(f"aggregation must be token, sequence or dr_grpo; got {aggregation!r}")


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Estimate KL(policy || reference) from samples of the policy: exp(d) - d - 1, d = log ref - log policy.

    Unbiased and never negative (Schulman, "Approximating KL divergence", 2020).
    """
    d = reference_logprobs - logprobs
    return torch.expm1(d) - d


def grpo_loss(
    logprobs: Tensor,
    advantages: Tensor,
    *,
    old_logprobs: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
    beta: float = 0.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio: Ratio = "token",
    aggregation: Aggregation = "token",
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    max_tokens: int | None = None,
    normalizer: Tensor | float | None = None,
    entropy: Tensor | None = None,
) -> tuple[Tensor, GRPOMetrics]:
    """Clipped policy gradient with a KL penalty: -min(ratio A, clip(ratio) A) + beta k3, a token.

    `logprobs`, and where given `old_logprobs` (of the policy that sampled; without them it is this one),
    `reference_logprobs` and `entropy`, are (B, N); `advantages` and `weights` (B,); `mask` (B, N) is true
    where a token counts. `clip_low` and `clip_high` bound the ratio to [1 - low, 1 + high] (apart: DAPO,
    arXiv 2503.14476). `ratio="sequence"` gives each token the geometric mean of its sequence's ratios
    (GSPO, arXiv 2507.18071). `aggregation`, `max_tokens` and `normalizer`: see `grpo_normalizer`. The KL is
    measured wherever there is a reference, and enters the loss by `beta`.

    Source: DeepSeekMath (arXiv 2402.03300), equation 3.

    Raises:
        ValueError: `beta` without a reference, or an unknown `ratio` or `aggregation`.
    """
    if beta and reference_logprobs is None:
        raise ValueError(f"beta is {beta}, and there are no reference_logprobs to be near to")
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask.bool()
    weights = torch.ones_like(advantages) if weights is None else weights
    old_logprobs = logprobs.detach() if old_logprobs is None else old_logprobs

    def aggregate(values: Tensor) -> Tensor:
        rows = (values * mask).sum(1)
        if aggregation == "sequence":
            rows = rows / mask.sum(1).clamp(min=1)
        return (weights * rows).sum() / total

    total = grpo_normalizer(weights, mask, aggregation, max_tokens=max_tokens)
    total = total if normalizer is None else torch.as_tensor(normalizer, device=logprobs.device)
    total = torch.where(total > 0, total, 1.0)  # nothing counts: the sum is 0 already

    # Masked before exp, so that whatever stands in the padding cannot become infinite.
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    if ratio == "sequence":
        mean = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        log_ratio = mean.expand_as(log_ratio)
    elif ratio != "token":
        raise ValueError(f"ratio must be token or sequence, got {ratio!r}")
    rho = log_ratio.exp()  # (B, N)
    a = advantages[:, None]
    losses = -torch.minimum(rho * a, rho.clamp(1 - clip_low, 1 + clip_high) * a)
    if reference_logprobs is None:
        kl = torch.zeros_like(losses)
    else:
        kl = k3(logprobs.masked_fill(~mask, 0.0), reference_logprobs.masked_fill(~mask, 0.0))
        losses = losses + beta * kl

    with torch.no_grad():
        metrics = GRPOMetrics(
            kl=aggregate(kl),
            clip_low=aggregate(((rho < 1 - clip_low) & (a < 0)).float()),
            clip_high=aggregate(((rho > 1 + clip_high) & (a > 0)).float()),
            ratio=aggregate(rho),
            entropy=logprobs.new_tensor(torch.nan) if entropy is None else aggregate(entropy),
        )
    return aggregate(losses), metrics


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    *,
    tokens: int,
    loss: PreferenceLoss = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    sft: float = 0.0,
    gamma: float = 0.0,
    weights: Tensor | None = None,
    normalizer: Tensor | float | None = None,
) -> tuple[Tensor, DPOMetrics]:
    """Prefer the chosen of each of B pairs to the rejected, by log-probabilities of images (B,).

    `chosen` and `rejected` are sums over an image's `tokens` (N), `reference_...` the same of the frozen
    reference. With S the sum less the reference's and D = S(chosen) - S(rejected):

    - `sigmoid`: -log sigmoid(beta D) (DPO, arXiv 2305.18290). D is a sum over hundreds of tokens, and beta
      0.1 saturates it soon: watch `slope`;
    - `sigmoid_norm`: -log sigmoid(beta D / N), with beta about N times that of `sigmoid`;
    - `ipo`: (D / N - 1 / (2 beta))^2 (arXiv 2310.12036), by the mean over tokens as its authors ran it;
    - `hinge`: max(0, 1 - beta D) (SLiC, arXiv 2305.10425);
    - `simpo`: -log sigmoid(beta (chosen - rejected) / N - gamma), without a reference (arXiv 2405.14734).
      A reference that is given serves the drifts alone.

    `label_smoothing` e is the share of pairs held to be the wrong way round: (1 - e) loss(D) + e loss(-D),
    of the three sigmoids. `sft` weighs a term -chosen / N that holds the chosen image's probability up.
    `weights` (B,) are 1 without any; `normalizer` is their sum over the whole batch.

    Raises:
        ValueError: a reference is missing where it is needed, label smoothing of `ipo` or `hinge`, `gamma`
            without `simpo`, or an unknown loss.
    """
    if loss not in ("sigmoid", "ipo", "hinge", "sigmoid_norm", "simpo"):
        raise ValueError(f"loss must be sigmoid, ipo, hinge, sigmoid_norm or simpo; got {loss!r}")
    if label_smoothing and loss in ("ipo", "hinge"):
        raise ValueError(f"label_smoothing {label_smoothing} has no meaning for {loss}: set it to 0")
    if gamma and loss != "simpo":
        raise ValueError(f"gamma is the margin of simpo, got {gamma} for {loss}: set it to 0")
    if reference_chosen is None or reference_rejected is None:
        if loss != "simpo":
            raise ValueError(f"{loss} needs the reference's log-probabilities; only simpo goes without")
        reference_chosen, reference_rejected = chosen.detach(), rejected.detach()

    chosen_gain, rejected_gain = chosen - reference_chosen, rejected - reference_rejected
    difference = chosen - rejected if loss == "simpo" else chosen_gain - rejected_gain
    if loss in ("ipo", "sigmoid_norm", "simpo"):
        difference = difference / tokens
    margin = difference if loss == "ipo" else beta * difference
    if loss == "ipo":
        goal = 1 / (2 * beta)
        losses = (margin - goal).square()
        slope = (1 - margin / goal).abs()
    elif loss == "hinge":
        losses = F.relu(1 - margin)
        slope = (margin < 1).to(margin)
    else:
        z = margin - gamma
        losses = -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)
        slope = torch.sigmoid(-z) / torch.sigmoid(margin.new_tensor(gamma))
    if sft:
        losses = losses - sft * chosen / tokens

    weights = torch.ones_like(losses) if weights is None else weights
    total = weights.sum().clamp(min=1) if normalizer is None else normalizer
    means = (margin, (margin > 0).to(margin), slope, chosen_gain, rejected_gain)
    metrics = DPOMetrics(*((weights * values.detach()).sum() / total for values in means))
    return (weights * losses).sum() / total, metrics
