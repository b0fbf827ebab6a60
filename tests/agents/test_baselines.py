"""Baselines against brute force, exact probabilities and planted logging policies."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from agents.baselines import (
    BestOfLists,
    EvaluatorSearch,
    PointwiseGreedy,
    Popularity,
    RandomSlate,
    RetrieverOrder,
    fit_logging_clone,
)
from agents.baselines.evaluator_search import neighbours
from agents.baselines.logging_clone import CLONE
from agents.rerankers.scorers import candidate_scores
from recsim_env.checkers import check_policy
from recsim_env.data.requests import LoggedRequests, logged_requests
from recsim_env.data.schema import LoggedDataset
from recsim_env.simulator import Simulator
from recsim_env.slates import list_log_prob, sample_lists
from recsim_env.types import ListValue, Policy, Request
from tests.helpers.planted import SIGNALS, PlantedEvaluator, planted_world


def requests(num: int, seed: int = 0, num_candidates: int = 10) -> Request:
    simulator = Simulator(planted_world(), num_candidates=num_candidates, slate_size=3, history_length=4)
    return simulator.start(num, seed).request


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class PairEvaluator:
    """A value for every ordered pair of neighbours: no sort of single items finds its best list."""

    def __init__(self, num_items: int = 30):
        self.pair_NN = torch.rand(num_items, num_items, generator=draw(5))

    def score(self, request: Request, items_BGK: Tensor) -> ListValue:
        pairs = self.pair_NN[items_BGK[..., :-1], items_BGK[..., 1:]]
        return ListValue(pairs.sum(2), torch.zeros(items_BGK.shape), torch.zeros(items_BGK.shape[:2]))


POLICIES: dict[str, Policy] = {
    "random": RandomSlate(3),
    "popularity": Popularity(torch.arange(30.0), 3),
    "retriever": RetrieverOrder(3),
    "pointwise": PointwiseGreedy(3),
    "weighted": PointwiseGreedy(3, {"watch_time": 0.1, "like": 5.0}, SIGNALS),
    "best of lists": BestOfLists(PairEvaluator(), 3),
    "evaluator search": EvaluatorSearch(PairEvaluator(), 3),
}


@pytest.mark.parametrize("name", POLICIES)
def test_every_baseline_passes_the_policy_checker(name: str) -> None:
    check_policy(POLICIES[name], planted_world())


@pytest.mark.parametrize("name", POLICIES)
def test_every_baseline_refuses_more_places_than_candidates(name: str) -> None:
    request = requests(2, num_candidates=3)
    too_few = request._replace(
        **{
            field: getattr(request, field)[:, :2]
            for field in (
                "candidates_BC",
                "candidate_features_BCD",
                "retriever_score_BC",
                "predicted_BCF",
                "predicted_std_BCF",
            )
        }
    )
    with pytest.raises(ValueError, match="need num_candidates >= slate_size, got 2 and 3"):
        POLICIES[name](too_few, draw())


def test_random_slates_are_uniform_over_all_ordered_choices() -> None:
    request = requests(1, num_candidates=4)
    many = Request(*(tensor.repeat_interleave(24_000, dim=0) for tensor in request))
    decision = RandomSlate(3)(many, draw())
    assert decision.log_prob_BK is not None
    counts = torch.unique(decision.items_BK, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    chi_squared = float(((counts - 1000.0) ** 2 / 1000.0).sum())
    assert chi_squared < 49.7  # 99.9 % of chi squared with 23 degrees
    assert torch.allclose(decision.log_prob_BK.sum(1), torch.tensor(-math.log(24.0)))


def test_plackett_luce_log_prob_sums_to_one_and_is_what_is_drawn() -> None:
    logits_BC = torch.tensor([[0.3, -1.0, 1.2, 0.0]])
    lists = torch.tensor(list(itertools.permutations(range(4), 2))).unsqueeze(0)
    probability_G = list_log_prob(logits_BC, lists).sum(2).exp()[0]
    assert float(probability_G.sum()) == pytest.approx(1.0, abs=1e-6)
    weights = logits_BC[0].exp()
    by_hand = weights[2] / weights.sum() * weights[0] / (weights.sum() - weights[2])
    index = lists[0].tolist().index([2, 0])
    assert float(probability_G[index]) == pytest.approx(float(by_hand), rel=1e-5)
    drawn_G2 = sample_lists(logits_BC, 40_000, 2, draw())[0]
    frequency_G = (drawn_G2.unsqueeze(0) == lists[0].unsqueeze(1)).all(2).float().mean(1)
    error_G = (probability_G * (1 - probability_G) / 40_000).sqrt()
    assert bool(((frequency_G - probability_G).abs() < 4.5 * error_G).all())


def test_sorting_baselines_against_python_sorts() -> None:
    request = requests(6)
    count_N = torch.randint(4, (30,), generator=draw(3)).float()  # many ties
    weighted = PointwiseGreedy(3, {"watch_time": 0.1, "like": 5.0}, SIGNALS)(request, draw())
    popular = Popularity(count_N, 3)(request, draw())
    for row, candidates in enumerate(request.candidates_BC.tolist()):
        predicted = request.predicted_BCF[row].tolist()
        score = {c: 0.1 * p[0] + 5 * p[1] for c, p in zip(candidates, predicted, strict=True)}
        assert weighted.items_BK[row].tolist() == sorted(candidates, key=lambda c: -score[c])[:3]
        # Python's sort is stable: ties stay in the retriever's order.
        assert popular.items_BK[row].tolist() == sorted(candidates, key=lambda c: -float(count_N[c]))[:3]


def test_a_weight_for_an_unknown_signal_is_refused() -> None:
    with pytest.raises(ValueError, match="no signals \\['lke'\\]"):
        PointwiseGreedy(3, {"lke": 1.0}, SIGNALS)


def test_best_of_lists_answers_its_best_proposal_and_never_falls_below_the_sort() -> None:
    request, evaluator = requests(50), PairEvaluator()
    policy = BestOfLists(evaluator, 3, num_lists=20)
    lists_BGK = policy.propose(request, draw(9))
    assert lists_BGK.shape == (50, 20, 3)
    assert torch.equal(lists_BGK[:, 0], PointwiseGreedy(3)(request, draw()).items_BK)
    answer_BK = policy(request, draw(9)).items_BK
    value_B = evaluator.score(request, answer_BK.unsqueeze(1)).value_BG[:, 0]
    best = [max(float(evaluator.score(request, lists_BGK[:, g : g + 1]).value_BG[b, 0]) for g in range(20))
            for b in range(50)]  # fmt: skip
    assert value_B.tolist() == pytest.approx(best)


def test_many_proposals_at_a_high_temperature_find_the_enumerated_optimum() -> None:
    request, evaluator = requests(5, num_candidates=5), PairEvaluator()
    best_B = enumerated_optimum(request, evaluator)
    answer_BK = BestOfLists(evaluator, 3, num_lists=2000, temperature=100.0)(request, draw()).items_BK
    assert torch.allclose(evaluator.score(request, answer_BK.unsqueeze(1)).value_BG[:, 0], best_B)


def test_evaluator_search_climbs_to_the_optimum_of_an_additive_evaluator() -> None:
    request = requests(20)
    evaluator = PlantedEvaluator(torch.rand(30, generator=draw(1)))
    answer_BK = EvaluatorSearch(evaluator, 3, rounds=1)(request, draw()).items_BK
    value_B = evaluator.score(request, answer_BK.unsqueeze(1)).value_BG[:, 0]
    assert torch.allclose(value_B, enumerated_optimum(request, evaluator))


def test_evaluator_search_ends_where_no_exchange_helps_and_beats_best_of_20() -> None:
    request, evaluator = requests(40), PairEvaluator()
    search_BK = EvaluatorSearch(evaluator, 3, rounds=20)(request, draw()).items_BK
    sampled_BK = BestOfLists(evaluator, 3)(request, draw()).items_BK
    value_B = evaluator.score(request, search_BK.unsqueeze(1)).value_BG[:, 0]
    assert float(value_B.mean()) > float(evaluator.score(request, sampled_BK.unsqueeze(1)).value_BG.mean())
    for row in range(40):
        found = search_BK[row].tolist()
        for place, candidate in itertools.product(range(3), request.candidates_BC[row].tolist()):
            other = list(found)
            if candidate in other:
                other[other.index(candidate)] = other[place]
            other[place] = candidate
            assert float(evaluator.score(request, torch.tensor([[other]])).value_BG) <= value_B[row] + 1e-5


def test_neighbours_exchange_and_never_repeat() -> None:
    lists_BCK = neighbours(torch.tensor([[4, 0, 2]]), 1, 5)
    assert lists_BCK[0].tolist() == [[4, 0, 2], [4, 1, 2], [4, 2, 0], [4, 3, 2], [0, 4, 2]]


def enumerated_optimum(request: Request, evaluator: PairEvaluator | PlantedEvaluator) -> Tensor:
    positions = torch.tensor(list(itertools.permutations(range(request.candidates_BC.shape[1]), 3)))
    lists_BGK = request.candidates_BC[:, positions]
    return evaluator.score(request, lists_BGK).value_BG.amax(1)


def planted_log(num_requests: int, with_candidates: bool, weight: float = 1.5) -> tuple[LoggedRequests, Tensor]:
    """Slates of three of ten candidates, drawn by Plackett-Luce from one feature; and its logits."""
    generator, num_items = draw(2), 40
    features_ND = torch.randn(num_items, 2, generator=generator)
    candidates_LC = torch.rand(num_requests, num_items, generator=generator).argsort(1)[:, :10]
    logits_LC = weight * features_ND[candidates_LC, 0]
    positions_LK = sample_lists(logits_LC, 1, 3, generator)[:, 0]
    items_R = candidates_LC.gather(1, positions_LK).flatten().numpy()
    row_request = np.repeat(np.arange(num_requests), 3)
    rows = log_rows(items_R, user=row_request * 20 // num_requests, time=row_request)
    rows["request"] = row_request
    rows["place"] = np.tile(np.arange(3, dtype=np.int8), num_requests)
    if with_candidates:
        rows["candidates"] = list(candidates_LC.numpy()[row_request].astype(np.int32))
    log = logged_requests(
        logged(rows, num_items),
        item_features_ND=features_ND,
        user_features_UD=torch.zeros(20, 1),
        history_length=3,
        predictor=NoOpinion(),
    )
    return log, logits_LC


def log_rows(items: np.ndarray, user: np.ndarray, time: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user": user.astype(np.int32),
            "item": items.astype(np.int32),
            "time_ms": 1_650_000_000_000 + 60_000 * time.astype(np.int64),
            "date": np.int32(20220415),
            "watch_time": np.float32(5.0),
            "duration": np.float32(10.0),
            "like": np.int8(0),
        }
    )


def logged(rows: pd.DataFrame, num_items: int) -> LoggedDataset:
    items = pd.DataFrame({"item_id": np.arange(num_items), "duration": np.float32(10.0)})
    return LoggedDataset("planted", rows, pd.DataFrame({"user_id": np.arange(20)}), items, SIGNALS)


class NoOpinion:
    """A predictor that says nothing."""

    def predict_request(self, request: Request, items_BC: Tensor, chosen_B: Tensor) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros(*items_BC.shape, request.history_feedback_BHF.shape[2])
        return nothing, nothing


def test_the_clone_recovers_a_planted_logging_policy() -> None:
    log, logits_LC = planted_log(3000, with_candidates=True)
    clone = fit_logging_clone(log, 3)
    request = log.batch(torch.arange(3000)).request
    true_LC, cloned_LC = logits_LC.log_softmax(1), candidate_scores(clone, request).detach().log_softmax(1)
    divergence = float((true_LC.exp() * (true_LC - cloned_LC)).sum(1).mean())
    from_uniform = float((true_LC.exp() * (true_LC + math.log(10))).sum(1).mean())
    assert from_uniform > 0.5
    assert divergence < 0.01


def test_slates_of_other_items_than_the_candidates_do_not_count() -> None:
    log, _ = planted_log(400, with_candidates=True)
    assert log.candidate_item_Q is not None
    lists_LC = log.candidate_item_Q.view(400, 10).clone()
    shown_LK = log.batch(torch.arange(400)).items_BK
    free_LN = (torch.arange(40) != shown_LK.unsqueeze(2)).all(1)
    strange = torch.arange(0, 400, 2)  # half the log: uniform exposure, say
    lists_LC[strange] = free_LN[strange].float().multinomial(10, generator=draw())
    mixed = dataclasses.replace(log, candidate_item_Q=lists_LC.flatten())
    request = log.batch(torch.arange(400)).request
    own = candidate_scores(fit_logging_clone(log, 3, among=torch.arange(1, 400, 2), max_epochs=2), request)
    both = candidate_scores(fit_logging_clone(mixed, 3, max_epochs=2), request)
    assert torch.equal(own, both)


def test_without_candidate_lists_the_clone_learns_against_the_catalogue() -> None:
    log, logits_LC = planted_log(3000, with_candidates=False)
    clone = fit_logging_clone(log, 3, config=dataclasses.replace(CLONE, num_candidates=20))
    offered = planted_log(3000, with_candidates=True)[0].batch(torch.arange(3000)).request
    cloned_LC = candidate_scores(clone, offered).detach()
    correlation = torch.corrcoef(torch.stack([cloned_LC.flatten(), logits_LC.flatten()]))[0, 1]
    assert float(correlation) > 0.95


def test_the_clone_is_pointwise_fits_the_same_twice_and_draws_with_its_probability() -> None:
    log, _ = planted_log(300, with_candidates=True)
    first, second = (fit_logging_clone(log, 3, max_epochs=1) for _ in range(2))
    request = log.batch(torch.arange(20)).request
    assert torch.equal(candidate_scores(first, request), candidate_scores(second, request))
    decision = first(request, draw())
    assert decision.log_prob_BK is not None
    assert torch.allclose(first.log_prob(request, decision.items_BK), decision.log_prob_BK)
    features = request.candidate_features_BCD.clone()
    features[:, 0] += 1.0
    moved = candidate_scores(first, request._replace(candidate_features_BCD=features)) - candidate_scores(
        first, request
    )
    assert moved[:, 1:].abs().max() == 0 < moved[:, 0].abs().max()
