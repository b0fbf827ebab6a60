"""GoalRank on the offline protocol it was published with (arXiv 2509.22046), instead of a running simulator.

The policy, its settings and the loss are those of ``agents.goalrank``; requests are the protocol's fixed ones, and
lists are valued by an evaluator fitted to labels beforehand. That evaluator looks at the whole list, where the
released code adds up the scores of single items.

Left out, as there: the released code's supervised term, which the paper does not define. A warm start from lists of
other policies belongs to the simulator's training loop and is not available here.

Shape legend: B requests, G lists, K places.
"""

import torch
from torch import Tensor

from agents.goalrank import GROUP_LOG_PROB, GROUP_POSITIONS, GROUP_VALUE, GoalRank, GoalRankConfig
from agents.list_policy import ListPolicy
from agents.offline.data import LabelledRequests, RerankData, shape_of
from agents.offline.label_evaluator import LabelEvaluator, LabelEvaluatorConfig, fit_label_evaluator
from agents.offline.training import OfflineTrainingConfig, fit_reranker


def group_loss(
    method: GoalRank,
    policy: ListPolicy,
    evaluator: LabelEvaluator,
    batch: LabelledRequests,
    generator: torch.Generator,
) -> Tensor:
    """The method's own loss on a group of the policy's own lists, drawn from ``generator``; a scalar."""
    positions_BGK, log_prob_BG = policy.sample_group(batch.request, method.config.group_size, generator)
    columns = {
        **batch.request._asdict(),
        GROUP_POSITIONS: positions_BGK,
        GROUP_LOG_PROB: log_prob_BG,
        GROUP_VALUE: evaluator.score_positions(batch.request, positions_BGK),
    }
    return method.loss(method.outputs(policy, columns), columns)[0]


def fit_goalrank(
    data: RerankData, config: GoalRankConfig, evaluator: LabelEvaluatorConfig, fit: OfflineTrainingConfig
) -> ListPolicy:
    """Fits the evaluator, then the policy; returns the policy, greedy.

    Args:
        data: the protocol's parts.
        config: ``min_spread`` is in discounted positives here. What concerns steps and learning rates is ``fit``'s.
        evaluator: settings of the evaluator.
        fit: how long and how fast both are fitted.

    Raises:
        ValueError: the settings ask for auxiliary lists or noisy values, which only the simulator's training has.
    """
    if config.auxiliary_share or config.value_noise:
        raise ValueError(
            "offline training has neither auxiliary lists nor noisy values: set auxiliary_share and value_noise to 0, "
            f"got {config.auxiliary_share} and {config.value_noise}"
        )
    shape = shape_of(data)
    judge = fit_label_evaluator(data, evaluator, fit, shape)
    method = GoalRank(config)
    policy = method.network(shape)
    policy.greedy = True

    def loss(batch: LabelledRequests, generator: torch.Generator) -> Tensor:
        return group_loss(method, policy, judge, batch, generator)

    fit_reranker(policy, loss, data, fit, label="GoalRank")
    return policy
