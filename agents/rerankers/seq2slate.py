"""Seq2Slate: a pointer network fitted to logged slates (arXiv 1810.02019).

At every place the cross-entropy to the videos' shares of the seconds, among those that are left after places that the
network drew itself, weighted by 1 / log2(1 + place).

Left out: the paper's REINFORCE form, which is what GoalRank's ``objective="grpo"`` does with an evaluator.

Shape legend: B requests, K places of a logged slate, and the videos at them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.list_policy import ListPolicy, ListPolicyConfig
from agents.method import Columns, request_of, require_one_of
from agents.rerankers.logged_slates import POSITIONS, SECONDS, SlateMethod, weighted_mean
from recsim_env.data.requests import LoggedBatch
from recsim_env.randomness import address, uniform
from recsim_env.slates import items_at

_NOISE, _LOG_P, _LEFT = "noise_BKK", "log_p_BKK", "left_BKK"


@dataclass(frozen=True, kw_only=True)
class Seq2SlateConfig(ListPolicyConfig):
    """Settings of the pointer network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "decoder", ("autoregressive",))


class Seq2Slate(SlateMethod):
    """The method."""

    Config = Seq2SlateConfig

    def from_log(self, batch: LoggedBatch) -> Columns:
        """Slates, and the noise by which the network will draw its own order.

        The noise of a slate is a function of the seed, the user and the slate, so that a fit can be stopped and go on.
        """
        places = batch.items_BK.shape[1]
        key_B = address(batch.request.user_B, *batch.items_BK.unbind(dim=1), self.config.seed)
        gumbel_BKK = -torch.log(-torch.log(uniform(key_B, places, places)))
        return {**super().from_log(batch), _NOISE: gumbel_BKK}

    def outputs(self, network: ListPolicy, batch: Columns) -> Columns:
        """Log-probabilities of what is left of the slate at each place, 0 for the rest; and what is left, 0 or 1.

        The first of the last two axes is the place that is filled, the second the video.
        """
        encoding, positions_BK = network.encoder(request_of(batch)), batch[POSITIONS]
        summary = network.decoder.begin(encoding)
        left_BK = torch.ones_like(positions_BK, dtype=torch.bool)
        log_ps, lefts = [], []
        for place in range(positions_BK.shape[1]):
            logit_BK = items_at(network.decoder.logits(encoding, summary)[:, 0], positions_BK)
            log_p_BK = logit_BK.masked_fill(~left_BK, -torch.inf).log_softmax(dim=1)
            log_ps.append(log_p_BK.masked_fill(~left_BK, 0.0))
            lefts.append(left_BK)
            # The largest log-probability plus Gumbel noise is a draw; what was drawn carries no gradient.
            drawn_B1 = (log_p_BK.detach() + batch[_NOISE][:, place]).argmax(dim=1, keepdim=True)
            left_BK = left_BK.scatter(1, drawn_B1, False)
            summary = network.decoder.extend(encoding, summary, items_at(positions_BK, drawn_B1))
        return {_LOG_P: torch.stack(log_ps, dim=1), _LEFT: torch.stack(lefts, dim=1).to(torch.float32)}

    def loss(self, outputs: Columns, batch: Columns) -> tuple[Tensor, Columns]:
        """Discounted cross-entropy of all places."""
        seconds_BKK = batch[SECONDS].unsqueeze(1) * outputs[_LEFT]
        share_BKK = seconds_BKK / seconds_BKK.sum(dim=2, keepdim=True).clamp(min=1e-6)
        loss_BK = -(share_BKK * outputs[_LOG_P]).sum(dim=2)
        place_K = torch.arange(loss_BK.shape[1], device=loss_BK.device)
        return weighted_mean((loss_BK / torch.log2(place_K + 2.0)).sum(dim=1), batch), {}
