"""What a log's ranker knew when it filled a place: controls for learning what places do to each other.

A ranker sorts, by things that it saw and the log lacks. What it showed first then tells what it knew of the user,
and passes for an effect of the list: later places look poor because they came last, and more of the same looks good
because the ranker shows it to those who like it. Given the ranker's own opinion of a video, its propensity, what
came before says no more about the video's user (propensity adjustment: Rosenbaum and Rubin 1983). So effects of
the list are fitted beside these controls, which are dropped afterwards; what videos are worth by themselves is
fitted before and without, or the controls would take it from them. Slates of uniform exposure have no ranker, and
their controls are 0.

Shape legend: P places of all requests, O opinions, X controls.
"""

import torch
from torch import Tensor

MAX_PLACES = 32
"""Places from here on share the last one's control."""

_USUAL_LOG_PROPENSITY = -3.0


def ranker_controls(
    place_P: Tensor, request_P: Tensor, propensity_P: Tensor, uniform_P: Tensor, opinion_PO: Tensor
) -> Tensor:
    """Controls (P, X) of each place: which one it is, and how likely the ranker was to fill it so.

    A log propensity is the ranker's score up to a constant of the request. For this constant stand the averages,
    over the slate, of log propensities and of a model's own opinions.

    Args:
        place_P: int64, 0 first.
        request_P: int64, any key of the request.
        propensity_P: float32, NaN where the log does not say: only the place counts then.
        uniform_P: bool.
        opinion_PO: float32, logits or log seconds expected of the place's item by itself.
    """
    _, request_P = torch.unique(request_P, return_inverse=True)
    count_L1 = torch.bincount(request_P).to(torch.float32).unsqueeze(1)
    known_P1 = propensity_P.isfinite().unsqueeze(1)

    def average(values_PY: Tensor) -> Tensor:
        sum_LY = values_PY.new_zeros(len(count_L1), values_PY.shape[1]).index_add_(0, request_P, values_PY)
        return (sum_LY / count_L1)[request_P]

    log_P1 = torch.where(known_P1, propensity_P.log().unsqueeze(1) - _USUAL_LOG_PROPENSITY, 0.0)
    average_P1 = average(log_P1)
    is_place_PZ = torch.nn.functional.one_hot(place_P.clamp(max=MAX_PLACES - 1), MAX_PLACES)
    control_PX = torch.cat([is_place_PZ, log_P1 - average_P1, average_P1, average(opinion_PO) * known_P1], dim=1)
    return control_PX * ~uniform_P.unsqueeze(1)


class RankerControls(torch.nn.Module):
    """A linear effect of the controls on a model's outputs, to be fitted beside effects of the list.

    Args:
        control_PX: all controls, which set their scales.
        shape: shape of the outputs of one place, the members of an ensemble first: (M, F) or (F,).
    """

    scale_X: Tensor

    def __init__(self, control_PX: Tensor, shape: tuple[int, ...]):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(*shape[:-1], control_PX.shape[1], shape[-1]))
        self.register_buffer("scale_X", 1.0 / control_PX.square().mean(dim=0).sqrt().clamp(min=0.1))

    def forward(self, control_PX: Tensor) -> Tensor:
        """Outputs (M, P, F) or (P, F)."""
        return torch.matmul(control_PX * self.scale_X, self.weight)
