"""Generator-evaluator rerankers of the offline protocol: what evaluators learn and what generators make of it."""

import pytest
import torch

from agents.goalrank import GoalRankConfig
from agents.list_policy import ListPolicy
from agents.networks import rows_at
from agents.offline.data import RerankData, shape_of
from agents.offline.egrerank import EgRerankConfig, PolicyLoss, clipped_loss, fit_egrerank
from agents.offline.goalrank import fit_goalrank
from agents.offline.label_evaluator import (
    LabelEvaluator,
    LabelEvaluatorConfig,
    fit_label_evaluator,
    random_lists,
)
from agents.offline.nlgr import ExchangeGenerator, NlgrConfig, _pick, fit_nlgr
from agents.offline.pier import Pier, PierConfig, comparative_loss, discounted_labels, fit_pier, sim_hash
from agents.offline.protocol import ProtocolConfig, build_rerank_data
from agents.offline.retriever import FactorisationConfig, fit_matrix_factorisation
from agents.offline.training import OfflineTrainingConfig, list_quality
from recsim_env.slates import positions_of
from tests.helpers.planted_ratings import planted_ratings

FIT = OfflineTrainingConfig(max_epochs=8, learning_rate=5e-3, batch_size=64)
SMALL = {"width": 16, "item_embedding": 4}
CHANCE = 0.21
"""NDCG@6 of random lists on these requests; test_protocol_rerankers measures it."""


@pytest.fixture(scope="module")
def data() -> RerankData:
    config = ProtocolConfig(protocol="papers", positive="like", num_candidates=20)
    retriever = FactorisationConfig(vector_width=6, sweeps=3)
    log = planted_ratings(num_users=240, fidelity=0.5)
    return build_rerank_data(log, lambda u, i, n: fit_matrix_factorisation(u, i, n, retriever), config)


@pytest.fixture(scope="module")
def evaluator(data: RerankData) -> LabelEvaluator:
    return fit_label_evaluator(data, LabelEvaluatorConfig(**SMALL), FIT, shape_of(data))


def test_lists_are_gathered_by_position() -> None:
    candidates = torch.arange(24.0).view(2, 4, 3)
    lists = torch.tensor([[[3, 0]], [[1, 2]]])
    assert rows_at(candidates, lists).tolist() == [
        [[candidates[0, 3].tolist(), candidates[0, 0].tolist()]],
        [[candidates[1, 1].tolist(), candidates[1, 2].tolist()]],
    ]


@pytest.mark.parametrize("mixing", ["lstm", "attention"])
def test_evaluators_know_the_better_list(mixing: str, data: RerankData) -> None:
    fitted = fit_label_evaluator(data, LabelEvaluatorConfig(mixing=mixing, **SMALL), FIT, shape_of(data))
    batch = data.test.all()
    lists = random_lists(batch.request, 8, 6, torch.Generator().manual_seed(1))
    with torch.no_grad():
        value = fitted.score_positions(batch.request, lists)
    truth = batch.label_BC.gather(1, lists.flatten(1)).view(lists.shape) / torch.log2(torch.arange(6) + 2.0)
    correlation = torch.corrcoef(torch.stack([value.flatten(), truth.sum(dim=2).flatten()]))[0, 1]
    assert correlation > 0.15


@pytest.mark.parametrize("mixing", ["lstm", "attention"])
def test_places_see_each_other_and_the_value_is_their_discounted_sum(mixing: str, data: RerankData) -> None:
    fresh = LabelEvaluator(LabelEvaluatorConfig(mixing=mixing, **SMALL), shape_of(data))
    chosen = torch.randn((2, 3, 6, 16), generator=torch.Generator().manual_seed(0))
    changed = chosen.clone()
    changed[..., 5, :8] += 1.0
    moved = (fresh.label_logits(changed) - fresh.label_logits(chosen)).abs()
    assert (moved.amax(dim=(0, 1)) > 1e-5).all()
    discount = 1 / torch.log2(torch.arange(6) + 2.0)
    torch.testing.assert_close(fresh.value(chosen), (fresh.label_logits(chosen).sigmoid() * discount).sum(dim=2))


def test_random_lists_hold_no_candidate_twice(data: RerankData) -> None:
    lists = random_lists(data.test.batch(torch.arange(50)).request, 20, 6, torch.Generator().manual_seed(0))
    assert (lists.sort(dim=2).values.diff(dim=2) > 0).all()
    count = torch.bincount(lists.flatten(), minlength=20)
    assert (count - 300).abs().max() < 5 * 300**0.5


def test_egrerank_finds_planted_tastes(data: RerankData) -> None:
    config = EgRerankConfig(heads=2, **SMALL)
    generator = fit_egrerank(data, config, LabelEvaluatorConfig(**SMALL), FIT)
    assert list_quality(generator, data.test)["NDCG"] > CHANCE + 0.12


def test_egrerank_clips_each_place_and_standardises_over_the_batch() -> None:
    old = torch.zeros(2, 2, 2)
    new = torch.log(torch.tensor([[[1.1, 1.5], [1.0, 1.0]], [[1.0, 1.0], [0.5, 1.3]]])).requires_grad_()
    value = torch.tensor([[4.0, 0.0], [0.0, 0.0]])
    loss = clipped_loss(new, old, value, clip=0.2)
    high, low = 3 / 3**0.5, -1 / 3**0.5  # mean 1, spread the root of 3
    of_places = [1.1 * high, 1.2 * high, low, low, low, low, 0.8 * low, 1.3 * low]
    assert loss.item() == pytest.approx(-sum(of_places) / 8, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, new)
    assert gradient[0, 0, 1] == 0  # raised enough
    assert gradient[1, 1, 0] == 0  # lowered enough
    assert gradient[1, 1, 1] > 0  # likelier although it is bad: pushed back, however far


def test_egrerank_draws_lists_from_an_older_copy(data: RerankData, evaluator: LabelEvaluator) -> None:
    config = EgRerankConfig(heads=2, renew_every=2, num_lists=4, **SMALL)
    generator = ListPolicy(config, shape_of(data), greedy=True)
    loss = PolicyLoss(generator, evaluator, config)
    batch, random = data.train.batch(torch.arange(32)), torch.Generator().manual_seed(0)
    weight = generator.decoder.query.weight

    def changed() -> bool:
        loss(batch, random)
        with torch.no_grad():
            weight.add_(0.01)
        return not torch.equal(loss._old.decoder.query.weight + 0.01, weight)

    assert [changed() for _ in range(4)] == [False, True, False, True]


@pytest.mark.parametrize("objective", ["group_relative", "grpo"])
def test_goalrank_finds_planted_tastes(objective: str, data: RerankData) -> None:
    config = GoalRankConfig(objective=objective, min_spread=0.005, width=16, heads=2, item_embedding=4)
    policy = fit_goalrank(data, config, LabelEvaluatorConfig(**SMALL), FIT)
    assert list_quality(policy, data.test)["NDCG"] > CHANCE + 0.12


def exchange_generator(evaluator: LabelEvaluator, data: RerankData, **changes: object) -> ExchangeGenerator:
    return ExchangeGenerator(NlgrConfig(heads=2, **SMALL, **changes), evaluator, shape_of(data))


def test_picks_are_one_hot_draws_with_the_gradient_of_the_softmax() -> None:
    logit = torch.tensor([0.0, 1.0, -1.0]).expand(20_000, 3).clone().requires_grad_()
    picked = _pick(logit, 1.0, torch.Generator().manual_seed(0))
    assert set(picked.unique().tolist()) == {0.0, 1.0}
    assert (picked.sum(dim=1) == 1).all()
    torch.testing.assert_close(picked.mean(dim=0), logit[0].softmax(dim=0), atol=0.015, rtol=0)
    assert _pick(logit[:1], 1.0, None).tolist() == [[0.0, 1.0, 0.0]]
    (ours,) = torch.autograd.grad(_pick(logit[:1], 0.5, None)[0, 2], logit)
    (theirs,) = torch.autograd.grad((logit[:1] / 0.5).softmax(dim=1)[0, 2], logit)
    torch.testing.assert_close(ours, theirs)


def test_an_exchange_makes_a_neighbour_and_never_repeats(data: RerankData, evaluator: LabelEvaluator) -> None:
    model = exchange_generator(evaluator, data, num_exchanges=12)
    request = data.test.batch(torch.arange(64)).request
    _, positions = model.improve(request, torch.Generator().manual_seed(0))
    assert torch.equal(positions[0], request.retriever_score_BC.topk(6).indices)
    assert (positions.sort(dim=2).values.diff(dim=2) > 0).all()
    changed = (positions[1:] != positions[:-1]).sum(dim=2)
    assert changed.max() == 1
    assert changed.float().mean() > 0.5


def test_nlgr_shows_the_best_list_it_met(data: RerankData, evaluator: LabelEvaluator) -> None:
    model = exchange_generator(evaluator, data)
    request = data.test.batch(torch.arange(64)).request
    items = model(request, torch.Generator()).items_BK
    value, _ = model.improve(request, None)
    positions = positions_of(items, request.candidates_BC)
    torch.testing.assert_close(evaluator.score_positions(request, positions.unsqueeze(1))[:, 0], value.amax(dim=0))


def test_nlgr_learns_exchanges_that_its_evaluator_likes(data: RerankData) -> None:
    fitted = fit_nlgr(data, NlgrConfig(heads=2, **SMALL), LabelEvaluatorConfig(**SMALL), FIT)
    fresh = exchange_generator(fitted.evaluator, data)
    request = data.test.all().request
    alone = torch.arange(20).view(1, 20, 1).expand(len(data.test), 20, 6)
    with torch.no_grad():
        best_alone = fitted.evaluator.score_positions(request, alone).topk(6).indices
        good = fitted.evaluator.score_positions(request, best_alone.unsqueeze(1)).mean()
        first, learned = fitted.improve(request, None)[0][[0, -1]].mean(dim=1)
        random = fresh.improve(request, None)[0][-1].mean()
    assert learned - first > 0.5 * (good - first)
    assert learned - random > 0.5 * (good - first)


def test_hashes_differ_by_the_angle() -> None:
    planes = torch.randn((2, 20_000), generator=torch.Generator().manual_seed(0))
    east, north_east, west = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 2.0]), torch.tensor([-3.0, 0.0])

    def differ(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((sim_hash(a, planes) != sim_hash(b, planes)).float().mean())

    assert differ(east, 5 * east) == 0
    assert differ(east, west) == 1
    assert differ(east, north_east) == pytest.approx(0.25, abs=0.015)


def test_pier_keeps_the_lists_nearest_to_the_user(data: RerankData) -> None:
    model = Pier(
        PierConfig(num_lists=30, num_kept=4), LabelEvaluatorConfig(mixing="attention", **SMALL), shape_of(data)
    )
    batch = data.test.batch(torch.arange(16))
    lists = random_lists(batch.request, 30, 6, torch.Generator().manual_seed(0))
    encoding = model.evaluator.encode(batch.request)
    kept = model.nearest(*encoding, lists)
    vectors = model.list_vectors(encoding.candidates_BCW, lists)
    for b in range(16):
        user = model.user(encoding.request_BW[b]) @ model.planes_WA > 0
        distance = torch.tensor([int(((vectors[b, g] @ model.planes_WA > 0) != user).sum()) for g in range(30)])
        of_kept = [distance[(lists[b] == one).all(dim=1)].min() for one in kept[b]]
        assert sorted(of_kept) == of_kept == distance.sort().values[:4].tolist()


def test_the_comparative_loss_by_hand() -> None:
    likeness = torch.tensor([[0.2, 0.1], [0.0, 0.0]])
    worth = torch.tensor([[0.0, 1.0], [1.0, 1.0]])  # the second request's lists are worth the same
    expected = torch.log(1 + torch.exp(torch.tensor(1.0)))
    torch.testing.assert_close(comparative_loss(likeness, worth), expected)
    lists = torch.tensor([[[2, 0]]])
    assert discounted_labels(torch.tensor([[1.0, 0.0, 1.0]]), lists).item() == pytest.approx(1 + 1 / 1.5849625)


def test_pier_finds_planted_tastes_and_its_hashes_help(data: RerankData) -> None:
    config = PierConfig(num_kept=10, comparative_weight=1.0)
    fitted = fit_pier(data, config, LabelEvaluatorConfig(mixing="attention", **SMALL), FIT)
    assert list_quality(fitted, data.test)["NDCG"] > CHANCE + 0.12
    batch = data.test.all()
    with torch.no_grad():
        encoding = fitted.evaluator.encode(batch.request)
        drawn = random_lists(batch.request, 100, 6, torch.Generator().manual_seed(0))
        kept = fitted.nearest(*encoding, drawn)
    assert discounted_labels(batch.label_BC, kept).mean() > 1.1 * discounted_labels(batch.label_BC, drawn).mean()


def test_pier_chooses_among_lists_nearly_as_good_as_its_scores_sort(data: RerankData) -> None:
    fitted = fit_pier(data, PierConfig(), LabelEvaluatorConfig(mixing="attention", **SMALL), FIT)
    batch = data.test.all()
    with torch.no_grad():
        candidates = fitted.evaluator.encode(batch.request).candidates_BCW
        proposed = fitted.propose(candidates, 100, torch.Generator().manual_seed(0))
        by_score = fitted.prior(candidates).squeeze(2).topk(6).indices
    assert torch.equal(proposed[:, 0], by_score)
    worth = discounted_labels(batch.label_BC, proposed)
    random = discounted_labels(batch.label_BC, random_lists(batch.request, 50, 6, torch.Generator().manual_seed(0)))
    assert worth.mean() - random.mean() > 0.8 * (worth[:, 0].mean() - random.mean())
    assert (proposed != proposed[:, :1]).any(dim=2).float().mean() > 0.5  # yet there is something to choose


def test_bad_settings_are_named(data: RerankData) -> None:
    with pytest.raises(ValueError, match="mixing must be one of"):
        LabelEvaluatorConfig(mixing="gru")
    with pytest.raises(ValueError, match="width must be a multiple of 4, got 10"):
        LabelEvaluatorConfig(width=10)
    with pytest.raises(ValueError, match="renew_every must be at least 1, got 0"):
        EgRerankConfig(renew_every=0)
    with pytest.raises(ValueError, match=r"num_kept must lie in 1\.\.num_lists, got 5 and 4"):
        PierConfig(num_lists=4, num_kept=5)
    with pytest.raises(ValueError, match=r"neither auxiliary lists nor noisy values.*got 0.5 and 0"):
        fit_goalrank(data, GoalRankConfig(auxiliary_share=0.5), LabelEvaluatorConfig(), FIT)
    with pytest.raises(ValueError, match="temperature must be positive"):
        NlgrConfig(temperature=0.0)
    with pytest.raises(ValueError, match="num_lists must be at least 1, got 0"):
        EgRerankConfig(num_lists=0)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        PierConfig(temperature=0)
