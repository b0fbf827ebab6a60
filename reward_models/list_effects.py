"""What the earlier places of a list change at a later one: an effect for each ordered pair of kinds.

A kind is a yes/no feature of a video, as its tags are. What earlier videos of a list make of a later one is the sum of
the effects of all earlier kinds on its own, and fades with each place between:

    strength_k = sum over j < k of memory ** (k - j - 1) * kinds_j @ pair @ kinds_k

The diagonal of ``pair`` is fatigue (negative) or appetite for more of the same; entry (a, b) beside it says how well a
video of kind b follows one of kind a. The strength is one number a place; how much each signal changes with it is up to
the model. Where a ranker ordered all slates, the level of ``pair`` cannot be learned: a constant added to all effects
looks the same in a log as a ranker that puts its best videos first. There it is set by convention: two videos drawn as
often as they are shown have, at the median, no effect on each other (``settle``). Slates of uniform exposure, which
nobody ordered, tell the level, and both parties learn it from those of their own.

Chosen by the log likelihood of held-out slates, uniform and ranked, of users that taught nothing: repetition feature
by feature gained half as much, a matrix over all features, numbers among them, up to three quarters.

Shape legend: K places, Z kinds, D features, N items; ``...`` any leading shape, an ensemble's members first.
"""

import torch
from torch import Tensor, nn

from recsim_env.numerics import sigmoid

_USUAL_MEMORY = 1.4  # log-odds of 0.8, where the fit begins


def kinds_of(features_ND: Tensor) -> Tensor:
    """Columns (int64) of the features that are 0 for some videos, 1 for others, and nothing else."""
    is_flag_D = ((features_ND == 0) | (features_ND == 1)).all(dim=0)
    return (is_flag_D & (features_ND != features_ND[:1]).any(dim=0)).nonzero().squeeze(1)


class PairEffects(nn.Module):
    """The effects of kinds on each other.

    Args:
        num_kinds: Z.
        members: (M,) for an ensemble side by side, () for a single model.
    """

    def __init__(self, num_kinds: int, members: tuple[int, ...] = ()):
        super().__init__()
        self.pair = nn.Parameter(torch.zeros(*members, num_kinds, num_kinds))
        self.memory_logit = nn.Parameter(torch.full(members, _USUAL_MEMORY))

    @torch.no_grad()
    def settle(self, share_Z: Tensor) -> None:
        """Moves the effects so that their median is 0, over pairs of kinds drawn by how often they are shown."""
        if not len(share_Z):
            return
        # A weighted median by sorting: the first effect at which half the weight has been passed.
        effect, order = self.pair.flatten(-2).sort(dim=-1)
        passed = torch.outer(share_Z, share_Z).flatten()[order].cumsum(dim=-1)
        middle = (passed < 0.5 * passed[..., -1:]).sum(dim=-1, keepdim=True)
        self.pair.sub_(effect.gather(-1, middle).unsqueeze(-1))

    def fading(self, gap: Tensor) -> Tensor:
        """What is left (..., *gap.shape) of an effect after ``gap`` places between; 0 for negative gaps."""
        memory = sigmoid(self.memory_logit)[(...,) + (None,) * gap.dim()]
        return torch.where(gap >= 0, memory ** gap.clamp(min=0), 0.0)

    def strength(self, effect: Tensor) -> Tensor:
        """Strengths (..., K) from the effects (..., K, K) of each place (row) on each place (column)."""
        place_K = torch.arange(effect.shape[-1], device=effect.device)
        fading = self.fading(place_K - place_K.unsqueeze(1) - 1)
        between = effect.dim() - fading.dim()  # axes between the members and the places
        members = fading.dim() - 2
        return (effect * fading[(slice(None),) * members + (None,) * between]).sum(dim=-2)
