"""Rerankers of the offline protocol: they find planted tastes, learn nothing from chance, and do not mind order."""

import math
from typing import Any

import pytest
import torch

from agents.baselines import RandomSlate
from agents.list_policy import ListPolicy
from agents.networks import RequestShape
from agents.offline.controls import with_shuffled_labels
from agents.offline.data import RerankData
from agents.offline.protocol import ProtocolConfig, build_rerank_data
from agents.offline.retriever import FactorisationConfig, fit_matrix_factorisation
from agents.offline.scorers import fit_scorer
from agents.offline.training import OfflineTrainingConfig, list_quality
from agents.rerankers.scorers import (
    SCORERS,
    Scorer,
    ScorerConfig,
    candidate_scores,
    listwise_softmax_loss,
    scorer_config,
)
from recsim_env.types import Request
from reward_models.metrics import grouped_auc
from tests.helpers.list_game import C, K, N, make_request
from tests.helpers.planted_ratings import planted_ratings

FIT = OfflineTrainingConfig(max_epochs=6, learning_rate=5e-3, batch_size=64)


def small(network: Any = "prm", seed: int = 0) -> ScorerConfig:
    return scorer_config(network, width=16, heads=2, item_embedding=4, seed=seed)


def new_scorer(network: str, request: Request) -> ListPolicy:
    scorer = Scorer(small(network)).network(RequestShape.of(request, N, K))
    scorer.greedy = True
    return scorer


@pytest.fixture(scope="module")
def data() -> RerankData:
    config = ProtocolConfig(protocol="papers", positive="like", num_candidates=20)
    retriever = FactorisationConfig(vector_width=6, sweeps=3)
    log = planted_ratings(num_users=240, fidelity=0.5)
    return build_rerank_data(log, lambda u, i, n: fit_matrix_factorisation(u, i, n, retriever), config)


def chance(data: RerankData) -> float:
    """NDCG of random lists."""
    return sum(list_quality(RandomSlate(6), data.test, seed=seed)["NDCG"] for seed in range(20)) / 20


@pytest.mark.parametrize("network", SCORERS)
def test_scorers_find_planted_tastes(network: str, data: RerankData) -> None:
    scorer = fit_scorer(data, small(network), FIT)
    assert list_quality(scorer, data.test)["NDCG"] > chance(data) + 0.15


def mean_auc(scorer: ListPolicy, data: RerankData) -> float:
    """AUC within requests: unlike NDCG's, its chance value is the same for every fixed order, on average."""
    request, label_BC, _ = data.test.all()
    group_BC = torch.arange(len(label_BC)).unsqueeze(1).expand_as(label_BC)
    with torch.no_grad():
        return grouped_auc(candidate_scores(scorer, request).flatten(), label_BC.flatten(), group_BC.flatten())


def test_shuffled_labels_teach_nothing(data: RerankData) -> None:
    control = with_shuffled_labels(data, torch.Generator().manual_seed(1))
    values = torch.tensor([mean_auc(fit_scorer(control, small(seed=s), FIT), data) for s in range(4)])
    assert abs(values.mean() - 0.5) < 0.1
    assert mean_auc(fit_scorer(data, small(), FIT), data) > 0.65


@pytest.mark.parametrize("network", SCORERS)
def test_lists_follow_the_candidates_when_these_change_places(network: str) -> None:
    generator = torch.Generator().manual_seed(0)
    request = make_request(16, generator)
    scorer = new_scorer(network, request)
    order = torch.randperm(C, generator=generator)
    moved = {
        name: getattr(request, name)[:, order]
        for name in ("candidates_BC", "candidate_features_BCD", "retriever_score_BC", "predicted_BCF",
                     "predicted_std_BCF")
    }  # fmt: skip
    shuffled = request._replace(**moved)
    assert torch.equal(scorer(shuffled, generator).items_BK, scorer(request, generator).items_BK)


def one_score_change(network: str) -> torch.Tensor:
    """How much each candidate's score moves when the first one's features change."""
    request: Request = make_request(1, torch.Generator().manual_seed(0))
    scorer = new_scorer(network, request)
    features = request.candidate_features_BCD.clone()
    features[0, 0] += 1.0
    return (
        candidate_scores(scorer, request._replace(candidate_features_BCD=features)) - candidate_scores(scorer, request)
    ).abs()[0]


def test_only_the_pointwise_network_scores_candidates_alone() -> None:
    assert one_score_change("dnn")[1:].max() == 0 < one_score_change("dnn")[0]
    for network in ("dlcm", "prm", "setrank"):
        assert (one_score_change(network)[1:] > 1e-6).all()


def test_prm_sees_the_retrievers_order_and_setrank_does_not_need_it() -> None:
    """Two candidates change places in that order while all scores stay all but the same."""
    request = make_request(1, torch.Generator().manual_seed(0))
    score = torch.linspace(0.0, 1.0, C).unsqueeze(0)
    score[0, 1] = score[0, 0] + 1e-5
    one, two = (request._replace(retriever_score_BC=s) for s in (score, score[:, [1, 0, *range(2, C)]]))
    moved = {}
    for network in ("prm", "setrank"):
        scorer = new_scorer(network, request)
        moved[network] = float((candidate_scores(scorer, one) - candidate_scores(scorer, two)).abs().max().detach())
    assert moved["prm"] > 1e-2
    assert moved["setrank"] < 1e-4


def test_the_listwise_loss_by_hand() -> None:
    score = torch.tensor([[1.0, 0.0, -1.0], [5.0, 2.0, 0.0]])
    label = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])  # the second request has nothing to teach
    total = math.log(math.e + 1 + 1 / math.e)
    assert listwise_softmax_loss(score, label).item() == pytest.approx(((total - 1) + (total + 1)) / 2)
    assert listwise_softmax_loss(score, torch.zeros(2, 3)).item() == 0.0


def test_same_seed_same_weights(data: RerankData) -> None:
    fit = OfflineTrainingConfig(max_epochs=1, seed=3)
    one, two = (fit_scorer(data, small(), fit).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = fit_scorer(data, small(seed=1), fit).state_dict()
    assert not torch.equal(one["decoder.score.0.weight"], other["decoder.score.0.weight"])


def test_bad_settings_are_named(data: RerankData) -> None:
    with pytest.raises(ValueError, match=r"scorer must be one of .*'transformer'"):
        scorer_config("transformer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dnn is defined by its \['layers', 'mixing'\]"):
        scorer_config("dnn", layers=1, mixing="mean")
    with pytest.raises(ValueError, match="decoder must be one of"):
        scorer_config("prm", decoder="matching")
    with pytest.raises(ValueError, match="heads must divide width"):
        scorer_config("prm", width=10, heads=4)
    with pytest.raises(ValueError, match="loss must be one of"):
        fit_scorer(data, small(), FIT, "hinge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        OfflineTrainingConfig(batch_size=0)
    with pytest.raises(ValueError, match="learning_rate"):
        OfflineTrainingConfig(learning_rate=0.0)
