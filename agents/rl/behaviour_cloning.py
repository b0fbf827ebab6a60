"""Behaviour cloning: the log's own slates, place by place, as next-item prediction. It plays nothing.

A list policy is fitted to the log-likelihood of logged slates: at every place, which of the candidates left did the
logging policy show? Where a log keeps no candidate lists, each slate is set among videos drawn evenly from the
catalogue, so the clone learns what is shown at all, not the ranker's order within its candidates. Slates that show a
video twice or videos from outside the candidates (uniform exposure) teach nothing.

Shape legend: L requests, B rows, C candidates, K places, M videos drawn.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.list_policy import POSITIONS, ListPolicy, ListPolicyConfig
from agents.method import Columns, request_of, require_at_least
from agents.networks import RequestShape
from recsim_env.data.requests import LoggedBatch, LoggedRequests
from recsim_env.slates import are_candidates, first_showing, positions_of
from recsim_env.types import NO_ITEM

WEIGHT = "weight_B"
"""Column of a batch: 1 for slates that teach, 0 for the others."""


@dataclass(frozen=True, kw_only=True)
class BehaviourCloningConfig(ListPolicyConfig):
    """Settings of the clone, beside those of its network."""

    num_candidates: int = 50
    """Candidates that a slate is set among where the log keeps none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 2, "num_candidates")


class BehaviourCloning:
    """The method."""

    Config = BehaviourCloningConfig
    data = "log"

    def __init__(self, config: BehaviourCloningConfig) -> None:
        self.config = config

    def network(self, shape: RequestShape) -> ListPolicy:
        """The list policy."""
        return ListPolicy(self.config, shape)

    def prepare_log(self, requests: LoggedRequests) -> LoggedRequests:
        """The same requests, each with candidates to choose from."""
        if requests.candidate_item_Q is not None:
            return requests
        return among_others(requests, self.config.num_candidates, self.config.seed)

    def from_log(self, batch: LoggedBatch) -> Columns:
        """Positions of the slates, and which of them teach."""
        candidates_BC, items_BK = batch.request.candidates_BC, batch.items_BK
        inside_BK = are_candidates(items_BK, candidates_BC)
        teaches_B = inside_BK.all(dim=1) & first_showing(items_BK).all(dim=1)
        anything_BK = candidates_BC[:, : items_BK.shape[1]]
        items_BK = torch.where(teaches_B.unsqueeze(1), items_BK, anything_BK)
        return {POSITIONS: positions_of(items_BK, candidates_BC), WEIGHT: teaches_B.to(torch.float32)}

    def outputs(self, network: ListPolicy, batch: Columns) -> Columns:
        """Log-probabilities (B, K) of each place."""
        encoding = network.encoder(request_of(batch))
        return {"log_prob_BK": network.decoder.log_prob(encoding, batch[POSITIONS].unsqueeze(1)).squeeze(1)}

    def loss(self, outputs: Columns, batch: Columns) -> tuple[Tensor, Columns]:
        """Mean negative log-likelihood of a place."""
        log_prob_B, weight_B = outputs["log_prob_BK"].mean(dim=1), batch[WEIGHT]
        return -(weight_B * log_prob_B).sum() / weight_B.sum().clamp(min=1), {"slates_used": weight_B.mean()}


def among_others(requests: LoggedRequests, num_candidates: int, seed: int) -> LoggedRequests:
    """Logged requests whose candidates are their slate and videos drawn evenly from the rest of the catalogue.

    Raises:
        ValueError: fewer videos than candidates, or slates with no room for another video.
    """
    num_items, size_L = len(requests.item_features_ND), requests.slate_size_L
    longest = int(size_L.max())
    if not longest < num_candidates <= num_items:
        raise ValueError(
            f"need slate size < num_candidates <= items of the catalogue, got {longest}, {num_candidates} and "
            f"{num_items}"
        )
    generator = torch.Generator().manual_seed(seed)
    place_LK = requests.slate_start_L1[:-1].unsqueeze(1) + torch.arange(longest)
    missing_LK = torch.arange(longest) >= size_L.unsqueeze(1)
    event_LK = requests.slate_event_P[place_LK.clamp(max=len(requests.slate_event_P) - 1)]
    slate_LK = requests.event_item_E[event_LK].masked_fill(missing_LK, NO_ITEM)
    # A run of a shuffled catalogue holds no video twice; the slate's own are moved to its end and cut off.
    run = min(num_candidates + longest, num_items)
    offset_L1 = torch.randint(num_items, (len(requests), 1), generator=generator)
    shuffled_N = torch.randperm(num_items, generator=generator)
    others_LM = shuffled_N[(offset_L1 + torch.arange(run)) % num_items]
    own_LM = (others_LM.unsqueeze(2) == slate_LK.unsqueeze(1)).any(dim=2)
    others_LM = others_LM.gather(1, own_LM.to(torch.int8).argsort(dim=1, stable=True))
    both = torch.cat([slate_LK, others_LM], dim=1)
    kept = torch.cat([~missing_LK, torch.arange(run) < (num_candidates - size_L).unsqueeze(1)], dim=1)
    starts_L1 = torch.arange(len(requests) + 1) * num_candidates
    return dataclasses.replace(requests, candidate_item_Q=both[kept], candidate_start_L1=starts_L1)
