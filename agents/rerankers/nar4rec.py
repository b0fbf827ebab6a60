"""NAR4Rec: candidates matched with places, all places at once, fitted to logged slates (arXiv 2402.06871).

A good slate is made likelier, a bad one less likely (unlikelihood, ``- log(1 - p)``). Good means watched longer than
the predictor had expected: a threshold on the seconds themselves would tell patient users from others. In use the
network writes its list greedily, or by the paper's ``ContrastiveDecoding``.

Shape legend: B requests, C candidates, K places, W width, A candidates that a place chooses
from.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.decoders import DecoderName, MatchingDecoder
from agents.list_policy import ListPolicy, ListPolicyConfig
from agents.method import Columns, request_of, require_one_of
from agents.networks import RequestShape, rows_at
from agents.rerankers.heuristics import cosine
from agents.rerankers.logged_slates import EXPECTED, POSITIONS, SECONDS, SlateMethod, weighted_mean
from recsim_env.slates import items_at
from recsim_env.types import Decision, Request

_LOG_P = "log_p_BK"


@dataclass(frozen=True, kw_only=True)
class Nar4RecConfig(ListPolicyConfig):
    """Settings of the matching network."""

    decoder: DecoderName = "matching"
    """Always "matching"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "decoder", ("matching",))


class Nar4Rec(SlateMethod):
    """The method."""

    Config = Nar4RecConfig

    def network(self, shape: RequestShape) -> ListPolicy:
        """The matching network.

        Raises:
            ValueError: lists of one place.
        """
        if shape.slate_size < 2:
            raise ValueError(f"NAR4Rec matches candidates with places: slate_size must be at least 2, got {shape}")
        return super().network(shape)

    def outputs(self, network: ListPolicy, batch: Columns) -> Columns:
        """Log-probability (B, K) of each video at its place, all candidates competing for every place."""
        positions_BK = batch[POSITIONS]
        matching_BKC, _ = network.decoder.begin(network.encoder(request_of(batch)))
        log_p_BKC = matching_BKC[:, : positions_BK.shape[1]].log_softmax(dim=2)
        return {_LOG_P: log_p_BKC.gather(2, positions_BK.unsqueeze(2)).squeeze(2)}

    def loss(self, outputs: Columns, batch: Columns) -> tuple[Tensor, Columns]:
        """Likelihood of good slates, unlikelihood of bad ones, place by place."""
        log_p_BK = outputs[_LOG_P]
        good_B1 = batch[SECONDS].sum(dim=1, keepdim=True) > batch[EXPECTED].sum(dim=1, keepdim=True)
        # A place that is sure of a bad video would have an infinite loss.
        unlikely_BK = -torch.log1p(-log_p_BK.exp().clamp(max=1 - 1e-6))
        loss_B = torch.where(good_B1, -log_p_BK, unlikely_BK).mean(dim=1)
        return weighted_mean(loss_B, batch), {"good_slates": good_B1.float().mean()}


class ContrastiveDecoding:
    """NAR4Rec's decoding: a place takes what is likely there and unlike what stands before it.

    Place by place, among the candidates most likely there, the one with the largest ``(1 - penalty) * probability
    - penalty * (cosine to the most similar earlier one)``, on the encoder's own encodings.

    Args:
        policy: a list policy with the "matching" decoder.
        penalty: weight of likeness, 0 (none) to 1 (nothing else).
        among: candidates that a place chooses from, at least 1.

    Raises:
        ValueError: another decoder, or a penalty or number out of range.
    """

    def __init__(self, policy: ListPolicy, penalty: float, among: int = 8):
        if not isinstance(policy.decoder, MatchingDecoder):
            raise ValueError(
                f"contrastive decoding needs the 'matching' decoder and two places or more, got "
                f"{policy.config.decoder!r} and {policy.shape.slate_size}"
            )
        if not 0 <= penalty <= 1 or among < 1:
            raise ValueError(f"need a penalty from 0 to 1 and among of at least 1, got {penalty} and {among}")
        self.policy, self.penalty, self.among = policy, penalty, among

    @torch.no_grad()
    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        """One slate for each request."""
        self.policy.shape.check(request)
        encoding = self.policy.encoder(request)
        matching_BKC, _ = self.policy.decoder.begin(encoding)
        likeness_BCC = cosine(encoding.candidates_BCW)
        nearest_BC = torch.zeros_like(matching_BKC[:, 0])
        taken_BC = torch.zeros_like(nearest_BC, dtype=torch.bool)
        chosen = []
        for place in range(self.policy.shape.slate_size):
            # Taken candidates stand below every other, so that the likeliest ones never hold them.
            p_BC = matching_BKC[:, place].softmax(dim=1).masked_fill(taken_BC, -1.0)
            score_BC = (1 - self.penalty) * p_BC - self.penalty * nearest_BC
            likely_BA = p_BC.topk(min(self.among, p_BC.shape[1] - place), dim=1).indices
            best_B1 = likely_BA.gather(1, score_BC.gather(1, likely_BA).argmax(dim=1, keepdim=True))
            like_BC = rows_at(likeness_BCC, best_B1)[:, 0]
            nearest_BC = like_BC if place == 0 else torch.maximum(nearest_BC, like_BC)
            taken_BC = taken_BC.scatter(1, best_B1, True)
            chosen.append(best_B1)
        return Decision(items_at(request.candidates_BC, torch.cat(chosen, dim=1)))
