"""What the recommender's models are fitted to, watch time and 0/1 signals alike.

Shape legend: M members, R rows, F signals (watch time first).
"""

import torch
from torch import Tensor


def signal_losses(
    logit_MRF: Tensor,
    target_RF: Tensor,
    known_RF: Tensor,
    mean_watch: Tensor,
    watch_weight: float,
    chance_weight: float = 1.0,
) -> Tensor:
    """Loss of each row (M, R): Poisson for watch time, in units of its mean, and log loss for the rest.

    Watch times are not counts. The Poisson form is taken for its score equations: at its optimum predicted and watched
    seconds agree in sum over every group that the model can tell apart, whatever the tail of the distribution. A
    squared loss on log seconds would be fitted to the median of a skewed quantity and miss its mean.
    """
    watch_MR = (torch.exp(logit_MRF[..., 0]) - target_RF[:, 0] * logit_MRF[..., 0]) / mean_watch
    target_MRF = target_RF[:, 1:].expand_as(logit_MRF[..., 1:])
    chance_MRF = torch.nn.functional.binary_cross_entropy_with_logits(logit_MRF[..., 1:], target_MRF, reduction="none")
    chance_MR = (chance_MRF * known_RF[:, 1:]).sum(dim=-1)
    return watch_weight * watch_MR * known_RF[:, 0] + chance_weight * chance_MR


def level_shifts(logit_MRF: Tensor, target_RF: Tensor, weight_MRF: Tensor) -> Tensor:
    """What to add to each member's logits (M, F) so that predictions and targets agree in sum.

    A model stopped early is off by a few percent in level, and all members to the same side. Applied to
    out-of-bag rows this costs no data. Newton's method; a unit of ridge keeps signals without a positive
    where they were.
    """
    shift_MF = torch.zeros(logit_MRF.shape[0], logit_MRF.shape[2])
    for _ in range(8):
        shifted_MRF = logit_MRF + shift_MF.unsqueeze(1)
        expected_MRF = torch.sigmoid(shifted_MRF)
        slope_MRF = expected_MRF * (1 - expected_MRF)
        # Seconds are the exponential of their logit, which is its own derivative.
        expected_MRF[..., 0] = torch.exp(shifted_MRF[..., 0])
        slope_MRF[..., 0] = expected_MRF[..., 0]
        gap_MF = ((target_RF - expected_MRF) * weight_MRF).sum(dim=1)
        shift_MF = shift_MF + gap_MF / ((slope_MRF * weight_MRF).sum(dim=1) + 1.0)
    return shift_MF
