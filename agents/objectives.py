"""Losses and advantages for groups of lists: pure functions of tensors.

A *group* is G lists drawn for one request, each with a value from a list evaluator. Values come in without
gradients; log-probabilities are those of whole lists (the sum over places). A group with a value that is not finite
is left out, as a flat one is.

Shape legend: B requests, G lists in a group.
"""

import torch
from torch import Tensor


def group_z_score(value_BG: Tensor) -> Tensor:
    """Values relative to their group: zero mean, unit (population) spread; all zero in a flat group."""
    centred_BG = value_BG - value_BG.mean(dim=1, keepdim=True)
    spread_B1 = value_BG.std(dim=1, keepdim=True, correction=0)
    # Equal values may differ in their last bits; that is no spread.
    return centred_BG / spread_B1.maximum(1e-8 + 1e-6 * value_BG.abs().amax(dim=1, keepdim=True))


def informative_groups(value_BG: Tensor, min_spread: float) -> Tensor:
    """Which groups (B,) spread by more than ``min_spread``, in the units of the values.

    Below it the evaluator's errors, not the lists, decide the order, so such groups teach nothing.
    """
    return value_BG.std(dim=1, correction=0) > min_spread


def group_relative_reference(value_BG: Tensor, temperature: float = 1.0) -> Tensor:
    """The reference policy on a group: softmax of z-scored values divided by the temperature, (B, G)."""
    return (group_z_score(value_BG) / temperature).softmax(dim=1)


def group_relative_cross_entropy(
    log_prob_BG: Tensor, value_BG: Tensor, temperature: float = 1.0, min_spread: float = 0.0
) -> Tensor:
    """GoalRank's loss: ``- sum over the group of reference * log-probability``, averaged over groups.

    Args:
        log_prob_BG: float32, log-probability of each list under the policy being trained.
        value_BG: float32, the evaluator's values.
        temperature: below 1 the reference leans more on the best lists.
        min_spread: groups that spread by no more are left out of the average.

    Returns:
        A scalar; 0 when every group was left out.
    """
    kept_B = informative_groups(value_BG, min_spread)
    reference_BG = group_relative_reference(_values_of(kept_B, value_BG), temperature)
    return _mean_over(kept_B, -(reference_BG * log_prob_BG).sum(dim=1))


def grpo_loss(
    log_prob_BG: Tensor,
    old_log_prob_BG: Tensor,
    value_BG: Tensor,
    clip: float = 0.2,
    min_spread: float = 0.0,
) -> Tensor:
    """Clipped policy gradient with the z-score in the group as advantage (GRPO; ratio of whole lists).

    Args:
        log_prob_BG: float32, log-probability of each list under the policy being trained.
        old_log_prob_BG: float32, under the policy that drew the lists.
        value_BG: float32, the evaluator's values.
        clip: how far the probability ratio may move from 1 before its gradient stops.
        min_spread: groups that spread by no more are left out of the average.

    Returns:
        A scalar; 0 when every group was left out.
    """
    kept_B = informative_groups(value_BG, min_spread)
    advantage_BG = group_z_score(_values_of(kept_B, value_BG))
    ratio_BG = (log_prob_BG - old_log_prob_BG).exp()
    clipped_BG = ratio_BG.clamp(1 - clip, 1 + clip)
    gain_B = (ratio_BG * advantage_BG).minimum(clipped_BG * advantage_BG).mean(dim=1)
    return _mean_over(kept_B, -gain_B)


def _values_of(kept_B: Tensor, value_BG: Tensor) -> Tensor:
    """The values of kept groups; zeros elsewhere, as NaN times no weight is NaN."""
    return torch.where(kept_B.unsqueeze(1), value_BG, 0.0)


def _mean_over(kept_B: Tensor, loss_B: Tensor) -> Tensor:
    return (loss_B * kept_B).sum() / kept_B.sum().clamp(min=1)
