"""GoalRank: a generator-only list ranker trained towards a group-relative reference (arXiv 2509.22046).

One network writes the slate; no evaluator is asked when it is used. In training, a group of lists is drawn
for each request, a list evaluator values them, and the network is fitted by cross-entropy to the softmax of
the values' z-scores in the group.

Implemented as the paper has it:

- the list policy, in both forms: autoregressive with chosen candidates masked, and one softmax over the
  candidates with its exact Plackett-Luce probability (``decoder``; NAR4Rec's matching beside them);
- the printed loss, ``- sum of reference * log-probability``, and greedy decoding in use;
- groups whose values spread by no more than ``min_spread`` are left out. The paper gives no formula for its
  threshold; here it is a standard deviation in the evaluator's units (seconds);
- groups of the policy's own lists with those of auxiliary policies (``auxiliary_share``): sorts, MMR and DPP. The
  paper keeps them for good; here they may end after ``auxiliary_requests``, a warm start, which is the default
  wherever they are used: kept for good they anchor the policy to themselves. Its light neural rankers are left out
  of them;
- one dial for the size of the network, a thousand to 100 million parameters (``agents.list_policy.SIZES``);
- noise on the evaluator's values, the paper's robustness test (``value_noise``). The paper mixes in noise of
  unit variance and does not give the values' own; here, where they are seconds, the noise varies as much as the
  values of all lists of a step do, which is as if these were standardised first.

Changed or left out, and why:

- the authors' released code weights by the probability, not by its logarithm; that loss is not used, for at
  equal budget it stayed below a pointwise sort in our trials;
- no supervised term beside the group term: the released code has one, the paper does not define it;
- requests come from a running simulator, where what was shown before decides what is asked next, not from a
  fixed set of logged requests;
- the evaluator looks at whole lists; the released one adds up the scores of single items;
- ``objective="grpo"`` trains the same network by the clipped policy gradient on the same groups: the
  comparison that the paper lacks.

Shape legend: B requests, C candidates, K places, G lists in a group.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.list_policy import ListPolicy, ListPolicyConfig
from agents.method import Columns, Operator, Step, request_of, require_at_least, require_one_of, require_positive
from agents.networks import RequestShape
from agents.objectives import group_relative_cross_entropy, grpo_loss, informative_groups
from agents.rerankers.heuristics import HeuristicGenerators, standard_heuristics
from recsim_env.slates import items_at
from recsim_env.types import Request

OBJECTIVES = ("group_relative", "grpo")

GROUP_POSITIONS, GROUP_LOG_PROB, GROUP_VALUE = "group_positions_BGK", "group_log_prob_BG", "group_value_BG"
"""Columns of a batch: the lists of each request's group, their log-probabilities when drawn, and their values."""


@dataclass(frozen=True, kw_only=True)
class GoalRankConfig(ListPolicyConfig):
    """Settings of GoalRank, beside those of its network."""

    lr: float = 2e-3
    """Learning rate of Adam."""
    num_epochs: int = 2
    """Passes over each batch of requests."""
    objective: Literal["group_relative", "grpo"] = "group_relative"
    """"group_relative" is GoalRank's cross-entropy; "grpo" the clipped policy gradient on the same groups."""
    group_size: int = 16
    """G: lists drawn for each request."""
    temperature: float = 1.0
    """Softmax temperature of the reference; below 1 it leans more on the group's best lists."""
    auxiliary_share: float = 0.0
    """Share of a group's lists that come from auxiliary heuristics instead of the policy, below 1."""
    auxiliary_requests: int | None = 5_000
    """Requests after which groups hold the policy's own lists alone; ``None`` keeps the auxiliary ones for good. Of
    30,720 requests in all, 5,000 cost 1 % of the evaluator's value in the world of training, 15,000 cost 5 %."""
    min_spread: float = 0.1
    """Groups whose values have no larger standard deviation are left out (units of the evaluator: seconds).
    With 0, z-scores blow up differences that mean nothing, and "grpo" settles early on poor lists."""
    clip: float = 0.2
    """Probability ratio beyond which "grpo" stops pushing."""
    value_noise: float = 0.0
    """Share of Gaussian noise in the values, 0 (none) to 1 (nothing else), for robustness studies. It varies as the
    values do over all requests of a step, so it is several times what tells the lists of one request apart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "objective", OBJECTIVES)
        require_positive(self, "temperature", "clip")
        require_at_least(self, 0, "min_spread")
        if self.group_size < 2:
            raise ValueError(f"a group needs at least 2 lists to compare, got group_size={self.group_size}")
        if self.objective == "grpo" and self.auxiliary_share:
            raise ValueError(
                f"grpo compares with the policy that drew the lists, which auxiliary ones have none of; got "
                f"auxiliary_share={self.auxiliary_share}: set it to 0 or use objective='group_relative'"
            )
        if self.auxiliary_requests is not None and self.auxiliary_requests < 0:
            raise ValueError(f"auxiliary_requests must be None or at least 0, got {self.auxiliary_requests}")
        if not 0 <= self.auxiliary_share < 1:
            raise ValueError(f"auxiliary_share is a share from 0 to below 1, got {self.auxiliary_share}")
        if self.num_auxiliary >= self.group_size:
            raise ValueError(
                f"auxiliary_share={self.auxiliary_share} of group_size={self.group_size} leaves no list of the "
                "policy's own"
            )
        if not 0 <= self.value_noise <= 1:
            raise ValueError(f"value_noise is a share from 0 to 1, got {self.value_noise}")

    @property
    def num_auxiliary(self) -> int:
        """Auxiliary lists of a group, while there are any."""
        return round(self.auxiliary_share * self.group_size)


class GoalRank:
    """The method: groups of lists, valued by the recommender's list evaluator, teach a list policy."""

    Config = GoalRankConfig
    data = "fresh"

    def __init__(self, config: GoalRankConfig) -> None:
        self.config = config
        self._auxiliary: HeuristicGenerators | None = None

    def network(self, shape: RequestShape) -> ListPolicy:
        """The list policy."""
        return ListPolicy(self.config, shape)

    def begin(self, operator: Operator) -> None:
        """Refuses to start without an evaluator, or with more auxiliary lists than there are heuristics."""
        if operator.evaluator is None or not hasattr(operator.evaluator, "score"):
            found = "none" if operator.evaluator is None else type(operator.evaluator).__name__
            raise ValueError(
                f"GoalRank needs a list evaluator to value its lists, and this world has {found}; train in a world "
                "that python -m experiments.build_world made, or give one with evaluator= (--evaluator module:Name): "
                "an object with score(request, items_BGK)"
            )
        if self.config.num_auxiliary:
            heuristics = standard_heuristics(operator.signals)
            if self.config.num_auxiliary > len(heuristics):
                raise ValueError(
                    f"auxiliary_share asks for {self.config.num_auxiliary} auxiliary lists a group, there are "
                    f"{len(heuristics)}; lower auxiliary_share or group_size"
                )
            self._auxiliary = HeuristicGenerators(
                heuristics, operator.signals, operator.slate_size, operator.catalogue.tag_N
            )

    def collect(
        self, network: ListPolicy, request: Request, operator: Operator, generator: torch.Generator, num_requests: int
    ) -> Step:
        """Draws a group for each request and has it valued; the first list, the policy's own, is played."""
        positions_BGK, log_prob_BG = self._group(network, request, generator, num_requests)
        items_BGK = items_at(request.candidates_BC, positions_BGK)
        assert operator.evaluator is not None
        value_BG = self._with_noise(operator.evaluator.score(request, items_BGK).value_BG, generator)
        if not bool(value_BG.isfinite().all()):
            raise ValueError(
                f"{type(operator.evaluator).__name__} values some lists at NaN or infinity; groups are compared by "
                "finite values: give lists that must not be shown a low one"
            )
        groups = {GROUP_POSITIONS: positions_BGK, GROUP_LOG_PROB: log_prob_BG, GROUP_VALUE: value_BG}
        return Step(items_BGK[:, 0], groups)

    def outputs(self, network: ListPolicy, batch: Columns) -> Columns:
        """Log-probabilities (B, G) of the groups' lists."""
        return {GROUP_LOG_PROB: network.group_log_prob(request_of(batch), batch[GROUP_POSITIONS])}

    def loss(self, outputs: Columns, batch: Columns) -> tuple[Tensor, Columns]:
        """The objective, and what the groups look like."""
        log_prob_BG, value_BG, config = outputs[GROUP_LOG_PROB], batch[GROUP_VALUE], self.config
        if config.objective == "group_relative":
            loss = group_relative_cross_entropy(log_prob_BG, value_BG, config.temperature, config.min_spread)
        else:
            loss = grpo_loss(log_prob_BG, batch[GROUP_LOG_PROB], value_BG, config.clip, config.min_spread)
        return loss, {
            "list_entropy": -log_prob_BG.detach().mean(),
            "group_value": value_BG.mean(),
            "group_spread": value_BG.std(dim=1, correction=0).mean(),
            "groups_used": informative_groups(value_BG, config.min_spread).float().mean(),
        }

    @torch.no_grad()
    def _group(
        self, network: ListPolicy, request: Request, generator: torch.Generator, num_requests: int
    ) -> tuple[Tensor, Tensor]:
        """A group's positions (B, G, K) and log-probabilities (B, G): own lists, then auxiliary ones."""
        config, num_auxiliary = self.config, self.config.num_auxiliary
        if config.auxiliary_requests is not None and num_requests >= config.auxiliary_requests:
            num_auxiliary = 0
        positions_BGK, log_prob_BG = network.sample_group(request, config.group_size - num_auxiliary, generator)
        if not num_auxiliary:
            return positions_BGK, log_prob_BG
        assert self._auxiliary is not None, "begin() comes first"
        order = torch.randperm(len(self._auxiliary.names), generator=generator, device=generator.device).tolist()
        auxiliary = self._auxiliary.some(order[:num_auxiliary])
        positions_BGK = torch.cat([positions_BGK, auxiliary.propose(request, generator)], dim=1)
        return positions_BGK, network.group_log_prob(request, positions_BGK)

    def _with_noise(self, value_BG: Tensor, generator: torch.Generator) -> Tensor:
        share = self.config.value_noise
        if share == 0:
            return value_BG
        noise_BG = torch.randn(value_BG.shape, generator=generator, device=generator.device).to(value_BG.device)
        return (1 - share) * value_BG + share * value_BG.std(correction=0) * noise_BG
