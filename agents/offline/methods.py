"""The rerankers and the controls of the offline protocol by name, each ready to be fitted with a training seed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from agents.baselines import RandomSlate
from agents.goalrank import GoalRankConfig
from agents.list_policy import ListPolicy
from agents.offline.controls import with_shuffled_labels, without_scores
from agents.offline.data import RerankData
from agents.offline.dnr import DnrConfig, fit_dnr
from agents.offline.egrerank import EgRerankConfig, fit_egrerank
from agents.offline.goalrank import fit_goalrank
from agents.offline.label_evaluator import LabelEvaluatorConfig
from agents.offline.nlgr import NlgrConfig, fit_nlgr
from agents.offline.pier import PierConfig, fit_pier
from agents.offline.scorers import ScorerLoss, fit_scorer
from agents.offline.training import OfflineTrainingConfig
from agents.rerankers.scorers import ScorerConfig, ScorerName, candidate_scores, scorer_config
from recsim_env.slates import best_first
from recsim_env.types import Decision, Policy, Request

MIN_SPREAD = 0.005
"""GoalRank leaves out groups of lists whose values spread by no more, in discounted positives."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every method gets."""

    width: int = 64
    """Width of the networks; the papers have 128."""
    max_epochs: int = 12
    """Epochs at most."""

    def scorer(self, network: ScorerName, seed: int) -> ScorerConfig:
        """A network of this size."""
        return scorer_config(network, width=self.width, seed=seed)

    def evaluator(self, mixing: Literal["lstm", "attention"], seed: int) -> LabelEvaluatorConfig:
        """A list evaluator of this size."""
        return LabelEvaluatorConfig(mixing=mixing, width=self.width, seed=seed)

    def fit(self, seed: int) -> OfflineTrainingConfig:
        """How long it trains."""
        return OfflineTrainingConfig(max_epochs=self.max_epochs, seed=seed)


class Ranker(NamedTuple):
    """A method that is ready to be judged."""

    policy: Policy
    score: Callable[[Request], Tensor] | None
    """Scores (B, C) of all candidates, for AUC; ``None`` where a method only makes lists."""


OfflineMethod = Callable[[Budget, RerankData, int], Ranker]
"""Makes a ranker of a budget, the protocol's data and a training seed."""


def sort_by(score: Callable[[Request], Tensor], list_size: int) -> Ranker:
    """The sort by a score, best first."""
    return Ranker(lambda request, generator: Decision(best_first(request, score(request), list_size)), score)


def scored(scorer: ListPolicy) -> Ranker:
    """A fitted scorer."""
    return Ranker(scorer, partial(candidate_scores, scorer))


def scorer_method(network: ScorerName, loss: ScorerLoss = "softmax") -> OfflineMethod:
    """A network fitted to the labels."""
    return lambda budget, data, seed: scored(fit_scorer(data, budget.scorer(network, seed), budget.fit(seed), loss))


def blind_method(network: ScorerName) -> OfflineMethod:
    """A network that never sees the retriever's scores."""

    def make(budget: Budget, data: RerankData, seed: int) -> Ranker:
        scorer = fit_scorer(without_scores(data), budget.scorer(network, seed), budget.fit(seed), "bce")

        def score(request: Request) -> Tensor:
            blind = request._replace(retriever_score_BC=torch.zeros_like(request.retriever_score_BC))
            return candidate_scores(scorer, blind)

        return sort_by(score, data.list_size)

    return make


def dnr_method(noise: Literal["gaussian", "beta"]) -> OfflineMethod:
    """DNR around PRM."""
    config = DnrConfig(noise=noise)
    return lambda budget, data, seed: scored(fit_dnr(data, budget.scorer("prm", seed), config, budget.fit(seed)))


def egrerank(budget: Budget, data: RerankData, seed: int) -> Ranker:
    """EG-Rerank with an LSTM evaluator."""
    config = EgRerankConfig(width=budget.width, seed=seed)
    return Ranker(fit_egrerank(data, config, budget.evaluator("lstm", seed), budget.fit(seed)), None)


def goalrank(budget: Budget, data: RerankData, seed: int) -> Ranker:
    """GoalRank with an LSTM evaluator."""
    config = GoalRankConfig(width=budget.width, min_spread=MIN_SPREAD, seed=seed)
    return Ranker(fit_goalrank(data, config, budget.evaluator("lstm", seed), budget.fit(seed)), None)


def pier(budget: Budget, data: RerankData, seed: int) -> Ranker:
    """PIER's form."""
    return Ranker(fit_pier(data, PierConfig(), budget.evaluator("attention", seed), budget.fit(seed)), None)


def nlgr(budget: Budget, data: RerankData, seed: int) -> Ranker:
    """NLGR with an LSTM evaluator."""
    config = NlgrConfig(width=budget.width, seed=seed)
    return Ranker(fit_nlgr(data, config, budget.evaluator("lstm", seed), budget.fit(seed)), None)


def on_shuffled_labels(budget: Budget, data: RerankData, seed: int) -> Ranker:
    """PRM fitted to labels that mean nothing."""
    return scorer_method("prm")(budget, with_shuffled_labels(data, torch.Generator().manual_seed(seed)), seed)


def popularity(budget: Budget, data: RerankData, seed: int) -> Ranker:
    """Most positives before the test part."""
    count_N = data.popularity_SN[int(data.test.stage_L.min())]
    return sort_by(lambda request: count_N[request.candidates_BC], data.list_size)


SORTS: dict[str, OfflineMethod] = {
    "random": lambda budget, data, seed: Ranker(RandomSlate(data.list_size), None),
    "retriever order": lambda budget, data, seed: sort_by(lambda request: request.retriever_score_BC, data.list_size),
    "retriever order reversed": lambda budget, data, seed: sort_by(
        lambda request: -request.retriever_score_BC, data.list_size
    ),
    "popularity": popularity,
}
"""What learns nothing from the training part."""
SCORE_METHODS: dict[str, OfflineMethod] = {
    "PRM (BCE), no score": blind_method("prm"),
    "PRM (BCE)": scorer_method("prm", "bce"),
    "DNR, Gaussian": dnr_method("gaussian"),
    "DNR, Beta": dnr_method("beta"),
}
"""What differs in how the retriever's score is used; run under every noise."""
METHODS: dict[str, OfflineMethod] = {
    **SORTS,
    "PRM on shuffled labels": on_shuffled_labels,
    "DNN": scorer_method("dnn"),
    "DLCM": scorer_method("dlcm"),
    "PRM": scorer_method("prm"),
    "SetRank": scorer_method("setrank"),
    "EG-Rerank": egrerank,
    "GoalRank": goalrank,
    "PIER": pier,
    "NLGR": nlgr,
    **SCORE_METHODS,
}
"""Everything that is run on the clean scores."""
