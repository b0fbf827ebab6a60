"""Generators against plain loops, the choice among lists, and distances worked out by hand."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from agents.baselines import PointwiseGreedy, RandomSlate
from agents.goalrank import GoalRank, GoalRankConfig
from agents.list_policy import ListPolicy
from agents.method import Method
from agents.networks import RequestShape
from agents.policies import save_policy
from agents.rerankers.clig import CligConfig, ComplementaryEvaluator, search_generators
from agents.rerankers.complementarity import (
    comprehensiveness_gain,
    distinct,
    list_comprehensiveness,
    list_distances,
)
from agents.rerankers.heuristics import (
    Heuristic,
    HeuristicGenerators,
    cosine,
    greedy_dpp,
    mmr,
    same_tag,
    standard_heuristics,
)
from agents.rerankers.multi_generator import (
    GeneratorEvaluator,
    GeneratorPool,
    PolicyLists,
    SampledLists,
    check_generators,
    items_of,
)
from recsim_env.checkers import check_policy
from recsim_env.known_worlds import short_video_world, tiny_world
from recsim_env.simulator import Simulator
from recsim_env.types import ListEvaluator, ListValue, Policy, Request
from tests.helpers.list_game import TAG, C, K, N, TrueValue, make_request

SIGNALS = ("watch_time", "like")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bank(heuristics: list[Heuristic] | None = None) -> HeuristicGenerators:
    return HeuristicGenerators(heuristics or standard_heuristics(SIGNALS), SIGNALS, K, TAG)


def test_mmr_is_what_a_plain_loop_finds() -> None:
    relevance = torch.randn(4, 3, 7, generator=seeded())
    similarity = cosine(torch.randn(4, 7, 5, generator=seeded(1)))
    penalty = torch.tensor([0.0, 0.7, 3.0])
    found = mmr(relevance, similarity, penalty, 4)
    for b, g in itertools.product(range(4), range(3)):
        chosen: list[int] = []
        for _ in range(4):
            worth = {
                c: relevance[b, g, c] - penalty[g] * max((similarity[b, j, c] for j in chosen), default=0.0)
                for c in range(7)
                if c not in chosen
            }
            chosen.append(max(worth, key=lambda c: float(worth[c])))
        assert found[b, g].tolist() == chosen


def test_dpp_takes_the_largest_determinant_at_every_place() -> None:
    relevance = torch.randn(3, 2, 6, generator=seeded())
    similarity = cosine(torch.randn(3, 6, 8, generator=seeded(1)))
    sharpness = torch.tensor([0.2, 1.0])
    found = greedy_dpp(relevance, similarity, sharpness, 4)
    for b, g in itertools.product(range(3), range(2)):
        quality = (relevance[b, g] * sharpness[g]).exp().double()
        kernel = quality[:, None] * similarity[b].double() * quality
        chosen: list[int] = []
        for _ in range(4):
            rest = [c for c in range(6) if c not in chosen]
            chosen.append(max(rest, key=lambda c: float(torch.linalg.det(kernel[[*chosen, c]][:, [*chosen, c]]))))
        assert found[b, g].tolist() == chosen


def test_dpp_of_more_places_than_directions_still_answers_different_candidates() -> None:
    similarity = cosine(torch.randn(2, 8, 2, generator=seeded()))  # rank 2
    lists = greedy_dpp(torch.zeros(2, 1, 8), similarity, torch.ones(1), 6)
    assert all(len(set(row)) == 6 for row in lists[:, 0].tolist())


def test_a_sort_by_predicted_watch_time_is_pointwise_greedy() -> None:
    request = make_request(30, seeded())
    lists = bank([Heuristic()]).propose(request, seeded())
    assert torch.equal(items_of(request, lists)[:, 0], PointwiseGreedy(K)(request, seeded()).items_BK)


def test_same_tag_by_hand() -> None:
    expected = torch.tensor([[1.0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
    assert torch.equal(same_tag(torch.tensor([[4, 2, 4, -1, -1]]))[0], expected)  # without a tag: like itself alone


def test_standard_set_holds_a_hundred_different_generators() -> None:
    heuristics = standard_heuristics(("watch_time", "click", "long_view", "like", "follow", "comment", "forward"))
    assert len({h.name for h in heuristics}) == len(heuristics) >= 100


def test_tag_generators_show_a_tag_twice_only_where_they_must() -> None:
    """By main tags, whatever item features a world has: short_video has no yes/no feature at all."""
    world = short_video_world(num_users=40, num_items=300, seed=2)
    request = Simulator(world, slate_size=6).start(30, seed=0).request
    generators = HeuristicGenerators.standard(world, 6)
    shown_BGK = world.catalogue.tag_N[items_of(request, generators.propose(request, seeded()))]
    repeats_G = torch.tensor(
        [[6 - len(set(tags)) for tags in lists] for lists in shown_BGK.tolist()], dtype=torch.float32
    ).mean(dim=0)
    repeats = dict(zip(generators.names, repeats_G.tolist(), strict=True))
    assert repeats["sort +1 watch_time"] > 0.5
    assert repeats["dpp tags 2 +1 watch_time"] == repeats["dpp tags 0.5 +1 watch_time"] == 0
    assert 0 <= repeats["mmr tags 3 +1 watch_time"] < repeats["mmr tags 0.3 +1 watch_time"]


def test_a_dpp_with_more_places_than_tags_goes_on_by_relevance() -> None:
    relevance = torch.tensor([[[0.1, 2.0, 1.5, -1.0, 0.7, -0.2]]])
    similarity = same_tag(torch.tensor([[0, 0, 0, 1, 1, 0]]))
    assert greedy_dpp(relevance, similarity, torch.ones(1), 5).tolist() == [[[1, 4, 2, 0, 5]]]


def test_heuristics_follow_the_candidates_when_these_change_places() -> None:
    request, order = make_request(20, seeded()), torch.randperm(C, generator=seeded(3))
    fields = ("candidates_BC", "candidate_features_BCD", "retriever_score_BC", "predicted_BCF", "predicted_std_BCF")
    shuffled = request._replace(**{name: getattr(request, name)[:, order] for name in fields})
    before, after = (items_of(r, bank().propose(r, seeded())) for r in (request, shuffled))
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "beam"}, "family must be one of"),
        ({"kernel": "text"}, "kernel must be one of"),
        ({"weights": {}}, "at least one weight"),
        ({"strength": -1.0}, "must be finite and not negative"),
        ({"strength": float("inf")}, "must be finite and not negative"),
        ({"weights": {"watch_time": float("nan")}}, "weights must be finite"),
    ],
)
def test_bad_heuristics_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Heuristic(**settings)  # type: ignore[arg-type]


def test_unknown_inputs_and_twins_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no relevance inputs \['share'\]"):
        bank([Heuristic(weights={"share": 1.0})])
    with pytest.raises(ValueError, match="differ from each other"):
        bank([Heuristic(), Heuristic()])
    with pytest.raises(ValueError, match="need num_candidates >= slate_size"):
        HeuristicGenerators([Heuristic()], SIGNALS, C + 1, TAG).propose(make_request(2, seeded()), seeded())
    with pytest.raises(ValueError, match="know the tags of 1 items, the request offers item"):
        HeuristicGenerators([Heuristic()], SIGNALS, K, TAG[:1]).propose(make_request(2, seeded()), seeded())
    with pytest.raises(ValueError, match="slate_size must be at least 1"):
        HeuristicGenerators([Heuristic()], SIGNALS, 0, TAG)
    with pytest.raises(ValueError, match=r"weigh 1 signals .* the request predicts 2"):
        HeuristicGenerators([Heuristic()], SIGNALS[:1], K, TAG).propose(make_request(2, seeded()), seeded())


class PairEvaluator:
    """A value for every ordered pair of neighbours."""

    def __init__(self) -> None:
        self.pair_NN = torch.rand(N, N, generator=seeded(5))

    def score(self, request: Request, items_BGK: Tensor) -> ListValue:
        pairs = self.pair_NN[items_BGK[..., :-1], items_BGK[..., 1:]]
        return ListValue(pairs.sum(2), torch.zeros(items_BGK.shape), torch.zeros(items_BGK.shape[:2]))


def test_the_best_proposal_is_shown() -> None:
    request, evaluator = make_request(25, seeded()), PairEvaluator()
    pool = GeneratorPool([bank(), PolicyLists({"random": RandomSlate(K)})])
    shown = GeneratorEvaluator(pool, evaluator)(request, seeded(2)).items_BK
    proposed = items_of(request, pool.propose(request, seeded(2)))
    value = evaluator.score(request, shown.unsqueeze(1)).value_BG[:, 0]
    assert torch.equal(value, evaluator.score(request, proposed).value_BG.amax(dim=1))


def test_it_is_a_policy_of_a_real_world() -> None:
    world = tiny_world()
    generators = HeuristicGenerators.standard(world, world.defaults["slate_size"])
    check_policy(GeneratorEvaluator(generators, TrueValue()), world)


def test_more_draws_are_worth_more_where_the_evaluator_is_right() -> None:
    request = make_request(200, seeded())
    policy = ListPolicy(GoalRankConfig(width=16, heads=2), RequestShape.of(request, N, K))
    values = []
    for num_lists in (1, 4, 64):
        shown = GeneratorEvaluator(SampledLists(policy, num_lists), TrueValue())(request, seeded()).items_BK
        values.append(float(TrueValue().score(request, shown.unsqueeze(1)).value_BG.mean()))
    assert values[0] + 0.1 < values[1] < values[2] - 0.1


class Broken:
    names = ("fine", "broken")

    def __init__(self, wrong: Tensor):
        self.wrong = wrong

    def propose(self, request: Request, generator: torch.Generator) -> Tensor:
        fine = torch.arange(K).expand(len(request.user_B), 1, K)
        return torch.cat([fine, self.wrong.expand(len(request.user_B), 1, -1)], dim=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.tensor([0, 1, 1]), "'broken' proposed a candidate twice in one list for request 0"),
        (torch.tensor([0, 1, C]), f"'broken' proposed positions outside 0..{C - 1}"),
    ],
)
def test_the_checker_names_the_broken_generator(wrong: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_generators(Broken(wrong), make_request(2, seeded()), K)


def test_the_checker_sees_shapes_and_repeated_candidates() -> None:
    request = make_request(2, seeded())
    check_generators(bank(), request, K)
    with pytest.raises(ValueError, match="proposals must be int64 of shape"):
        check_generators(bank(), request, K + 1)
    twice = request._replace(candidates_BC=request.candidates_BC[:, [0, 0, 1, 2, 3, 4]])
    with pytest.raises(ValueError, match="request 0 offers a candidate twice"):
        check_generators(bank(), twice, K)


def test_pools_refuse_two_generators_of_one_name() -> None:
    with pytest.raises(ValueError, match="twice"):
        GeneratorPool([bank([Heuristic()]), bank([Heuristic()])])


def lists(*rows: list[int]) -> Tensor:
    return torch.tensor(rows).unsqueeze(0)


def test_pair_order_by_hand() -> None:
    request = make_request(1, seeded())._replace(candidates_BC=torch.arange(4).unsqueeze(0))
    # [0, 1] puts 0 before 1; beside [2, 3] it puts 01 02 03 12 13, the other 23 20 21 30 31; beside [0, 2] 01 02 12
    # and the other 02 01 21.
    found = list_distances(request, lists([0, 1]), lists([0, 1], [1, 0], [2, 3], [0, 2]), "pair_order")
    torch.testing.assert_close(found[0, 0], torch.tensor([0.0, 1.0, 4 / 6, 1 / 3]))


def test_embedding_distance_by_hand() -> None:
    features = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [-1, 0]]])
    request = make_request(1, seeded())._replace(candidate_features_BCD=features)
    found = list_distances(request, lists([0, 1]), lists([1, 0], [2, 2], [3, 3], [0, 2]), "embedding")
    torch.testing.assert_close(found[0, 0], torch.tensor([0.0, 1.0, 2.0, 1 - 0.5**0.5]))
    with pytest.raises(ValueError, match="distance must be one of"):
        list_distances(request, lists([0, 1]), lists([0, 1]), "edit")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["embedding", "pair_order"])
def test_comprehensiveness_grows_by_twice_the_gain_of_each_new_list(kind: str) -> None:
    request = make_request(6, seeded())
    proposed = bank().propose(request, seeded())[:, :12]
    distance = list_distances(request, proposed, proposed, kind)  # type: ignore[arg-type]
    torch.testing.assert_close(distance, distance.transpose(1, 2))
    for m in range(1, 12):
        grown = list_comprehensiveness(distance[:, : m + 1, : m + 1]) - list_comprehensiveness(distance[:, :m, :m])
        gain = comprehensiveness_gain(distance[:, m : m + 1, :m])[:, 0]
        torch.testing.assert_close(grown, 2 * gain, rtol=1e-4, atol=1e-4)


def complementary(reward_weight: float, gain_weight: float) -> ComplementaryEvaluator:
    config = CligConfig(reward_weight=reward_weight, gain_weight=gain_weight)
    return ComplementaryEvaluator(TrueValue(), bank([Heuristic()]), config)


def test_complementary_values_by_hand() -> None:
    request = make_request(5, seeded())
    first = items_of(request, bank([Heuristic()]).propose(request, seeded()))  # the list that is there already
    others = items_of(request, bank().propose(request, seeded())[:, 5:9])
    group = torch.cat([first, others], dim=1)
    value = TrueValue().score(request, group).value_BG
    assert torch.equal(complementary(1.0, 0.0).score(request, group).value_BG, value)
    alone = complementary(0.0, 1.0).score(request, group).value_BG
    assert (alone[:, :1] <= alone).all()  # nothing is less complementary than a copy
    torch.testing.assert_close(alone.std(1, correction=0), value.std(1, correction=0))
    both = complementary(2.0, 0.5).score(request, group).value_BG
    torch.testing.assert_close(both, 2 * value + 0.5 * alone)


@pytest.mark.parametrize(("reward_weight", "gain_weight"), [(0.0, 0.0), (-1.0, 1.0), (1.0, -0.1)])
def test_bad_weights_are_refused(reward_weight: float, gain_weight: float) -> None:
    with pytest.raises(ValueError, match="weights must not be negative, nor both zero"):
        complementary(reward_weight, gain_weight)


def test_each_generator_is_trained_beside_those_before_and_read_when_it_is_there(tmp_path: Path) -> None:
    asked = []

    def train(method: Method, evaluator: ListEvaluator, run_dir: Path) -> Path:
        asked.append((method.config.seed, str(evaluator)))
        shape = RequestShape.of(make_request(1, seeded()), N, K)
        return save_policy(run_dir / "policy", method, method.network(shape), shape)

    small = GoalRank(GoalRankConfig(width=16, heads=2, seed=7))
    for _ in range(2):
        found = list(
            search_generators(PointwiseGreedy(K), TrueValue(), train, num_generators=2, folder=tmp_path, method=small)
        )
        assert [policy.config.seed for policy in found] == [8, 9]
    assert [seed for seed, _ in asked] == [8, 9]
    assert asked[0][1].endswith("beside first")
    assert asked[1][1].endswith("beside first, learned 1")
    with pytest.raises(ValueError, match=r"settings.seed was 8, now 1.*settings.width was 16, now 64"):
        next(
            search_generators(
                PointwiseGreedy(K),
                TrueValue(),
                train,
                num_generators=1,
                folder=tmp_path,
                method=GoalRank(GoalRankConfig()),
            )
        )

    def again(first: Policy, evaluator: ListEvaluator, config: CligConfig) -> ListPolicy:
        return next(
            search_generators(first, evaluator, train, num_generators=1, folder=tmp_path, method=small, config=config)
        )

    with pytest.raises(ValueError, match=r"clig.gain_weight was 0\.3, now 0\.9"):
        again(PointwiseGreedy(K), TrueValue(), CligConfig(gain_weight=0.9))
    with pytest.raises(ValueError, match=r"evaluator was 'TrueValue', now 'PairEvaluator'"):
        again(PointwiseGreedy(K), PairEvaluator(), CligConfig())
    with pytest.raises(ValueError, match=r"beside.first was 'PointwiseGreedy', now 'ListPolicy \w+"):
        again(found[1], TrueValue(), CligConfig())
    (tmp_path / "generator-1" / "goal.json").unlink()
    with pytest.raises(ValueError, match=r"holds files but no goal\.json"):
        again(PointwiseGreedy(K), TrueValue(), CligConfig())


def test_a_pool_without_its_learned_generators() -> None:
    learned = {"learned": RandomSlate(K), "other": RandomSlate(K)}
    pool = GeneratorPool([bank(), PolicyLists(learned), PolicyLists({"sort": PointwiseGreedy(K)})])
    rest = pool.without(learned)
    assert rest.names == (*bank().names, "sort")
    request = make_request(7, seeded())
    kept = [index for index, name in enumerate(pool.names) if name not in learned]
    assert torch.equal(rest.propose(request, seeded()), pool.propose(request, seeded())[:, kept])
    with pytest.raises(ValueError, match=r"no generators \['PRM'\]"):
        pool.without(["PRM"])
    with pytest.raises(ValueError, match="got 0 sets"):
        pool.without(pool.names)


def test_some_generators_of_a_pool_are_the_same_ones() -> None:
    request = make_request(7, seeded())
    pool = GeneratorPool([bank(), PolicyLists({"sort": PointwiseGreedy(K), "random": RandomSlate(K)})])
    total = len(pool.names)
    some = pool.some([total - 2, 3, 0])
    assert some.names == (pool.names[3], pool.names[0], "sort")
    all_lists = pool.propose(request, seeded())
    torch.testing.assert_close(some.propose(request, seeded()), all_lists[:, [3, 0, total - 2]])


def test_a_generator_close_to_one_that_stays_is_dropped() -> None:
    """The second repeats the first; the third lies close to the second alone, so it stays."""
    distance = torch.tensor([[0.0, 0.1, 0.5], [0.1, 0.0, 0.1], [0.5, 0.1, 0.0]])
    assert distinct(distance, 0.2) == [0, 2]
    assert distinct(distance, 0.05) == [0, 1, 2]
    assert distinct(torch.zeros(3, 3), 0.01) == [0]


class Undecided(TrueValue):
    """Has no value for one list of the first request."""

    def score(self, request: Request, items_BGK: Tensor) -> ListValue:
        value = super().score(request, items_BGK)
        value.value_BG[0, -1] = torch.nan
        return value


def test_empty_sets_and_lists_are_refused() -> None:
    for generators, places in ((SimpleNamespace(names=()), K), (bank(), 0)):
        with pytest.raises(ValueError, match="at least one generator and one place"):
            check_generators(generators, make_request(2, seeded()), places)  # type: ignore[arg-type]


def test_a_list_without_value_is_never_chosen() -> None:
    with pytest.raises(ValueError, match="Undecided values some lists at NaN"):
        GeneratorEvaluator(bank(), Undecided())(make_request(5, seeded()), seeded())


def test_generators_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"generators 0 to 1, asked for \[-1, 2\]"):
        GeneratorPool([PolicyLists({"sort": PointwiseGreedy(K), "random": RandomSlate(K)})]).some([0, -1, 2])
