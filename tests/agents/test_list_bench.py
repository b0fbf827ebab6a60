"""Lists valued on the same requests: what must hold whatever the numbers are."""

import numpy as np
import pytest
import torch

from agents.baselines import PointwiseGreedy
from agents.rerankers import list_bench
from agents.rerankers.multi_generator import GeneratorPool
from recsim_env.assumptions import TagRepeatEffect
from recsim_env.known_worlds import short_video_world
from recsim_env.results import Cell
from recsim_env.simulator import Simulator
from recsim_env.types import Decision, Request
from recsim_env.world import World
from reward_models.recommender.list_evaluator import SlateEvaluator
from reward_models.recommender.list_evaluator_network import ListEvaluatorConfig, ListModel, Sizes, request_inputs
from tests.helpers.list_bench import Mistaken, all_generators, bench_cells, bench_world, mean

SET_SIZES = list_bench.SET_SIZES


class Backward:
    """The sort upside down."""

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        order = request.predicted_BCF[..., 0].argsort(dim=1)[:, :6]
        return Decision(request.candidates_BC.gather(1, order))


@pytest.fixture(scope="module")
def world() -> World:
    return bench_world()


@pytest.fixture(scope="module")
def bench(world: World) -> list_bench.Bench:
    return list_bench.Bench(world, 30, 6, seed=11)


@pytest.fixture(scope="module")
def pool(world: World) -> GeneratorPool:
    return all_generators(world)


@pytest.fixture(scope="module")
def cells(bench: list_bench.Bench, pool: GeneratorPool) -> dict[str, Cell]:
    return bench_cells(bench, pool)


def test_the_evaluator_never_prefers_fewer_generators(cells: dict[str, Cell]) -> None:
    values = [mean(cells[f"MG-E-{k}"], "evaluator_value") for k in SET_SIZES]
    assert values == sorted(values)
    assert values[-1] > values[0]
    assert mean(cells["evaluator search"], "evaluator_value") >= mean(cells["pointwise greedy"], "evaluator_value")


def test_the_harder_a_wrong_evaluator_is_searched_the_worse_the_lists(cells: dict[str, Cell]) -> None:
    tried = [cells[f"evaluator of 2% of users, best of {k}"] for k in list_bench.LISTS_TRIED]
    tried.append(cells["evaluator of 2% of users, search"])
    own, true = ([mean(cell, metric) for cell in tried] for metric in ("evaluator_value", "true_list_value"))
    assert own == sorted(own)
    assert true[0] > true[2] > true[-1]
    np.testing.assert_allclose(true[0], mean(cells["pointwise greedy"], "true_list_value"))


def test_without_company_every_list_method_ties_the_sort(world: World, pool: GeneratorPool) -> None:
    """The control stands where an evaluator's only company is a declared effect, too."""
    request = Simulator(world, slate_size=6).start(1, 0).request
    inputs = request_inputs(request)
    sizes = Sizes(inputs.candidate_BCI.shape[-1], inputs.request_BJ.shape[-1], inputs.base_BCF.shape[-1], 0)
    model = ListModel(ListEvaluatorConfig(listwise=False, num_members=2), sizes, seed=0)
    evaluator = SlateEvaluator(model, TagRepeatEffect(world.catalogue.tag_N, 0.9))
    declared = list_bench.Bench(world.replace(evaluator=evaluator), 20, 6, seed=11)
    found = list_bench.reference_cells(declared) | list_bench.additive_cells(declared, pool)
    own = {name: mean(cell, "evaluator_value") for name, cell in found.items()}
    tied = [own[f"additive evaluator, {how}"] for how in ("sort", "best of 100", "MG-E-100", "search")]
    assert max(tied) < 1.01 * min(tied)
    assert own["evaluator search"] > 1.05 * max(tied), "tags that repeat cost nothing"


def test_comprehensiveness_of_sets_by_hand(bench: list_bench.Bench) -> None:
    """A list and its reverse: 1 in either order of the pair; two equal lists have none."""
    forward = torch.arange(6).expand(30, 6)
    sets = [torch.stack([forward, forward.flip(1)], dim=1), torch.stack([forward, forward], dim=1)]
    found = list_bench.comprehensiveness(bench.request, [sets])
    assert found["comprehensiveness/pair_order"].tolist() == [1.0]  # the mean of 2 and 0
    assert found["comprehensiveness/embedding"].tolist() == pytest.approx([0.0], abs=1e-3)  # the same videos
    each = list_bench.comprehensiveness(bench.request, [sets[:1], sets[1:]])
    assert each["comprehensiveness/pair_order"].tolist() == [2.0, 0.0]  # one value for each training seed


def test_values_are_those_of_the_shown_lists(bench: list_bench.Bench, cells: dict[str, Cell]) -> None:
    items = PointwiseGreedy(6)(bench.request, torch.Generator()).items_BK.unsqueeze(1)
    true = bench.simulator.expected(bench.state, items).watch_time_BG[:, 0]
    np.testing.assert_allclose(cells["pointwise greedy"].ratios["true_list_value"][0][0], true, rtol=1e-6)
    gap = mean(cells["pointwise greedy"], "evaluator_value") - mean(cells["pointwise greedy"], "true_list_value")
    assert mean(cells["pointwise greedy"], "evaluator_gap") == pytest.approx(gap)


def test_picking_among_sets_is_a_plain_argmax(bench: list_bench.Bench) -> None:
    value, true = torch.rand(30, 4, generator=torch.Generator().manual_seed(1)), torch.arange(120.0).view(30, 4)
    picked = bench.pick(value, true, [[2, 0], [3]])
    expected = [(true[b, 2 if value[b, 2] >= value[b, 0] else 0] + true[b, 3]) / 2 for b in range(30)]
    np.testing.assert_allclose(picked.ratios["true_list_value"][0][0], torch.stack(expected), rtol=1e-6)


def test_the_top_share_counts_shown_lists_by_the_worlds_own_evaluator(bench: list_bench.Bench) -> None:
    high = bench.high_B.unsqueeze(1)
    value = torch.cat([high + 1, high - 3], dim=1)  # one list above the bar, one below: half are above, not none
    picked = bench.pick(value, value, [[0], [1]])
    assert mean(picked, "evaluator_top_share") == 0.5
    sort = [PointwiseGreedy(6)]
    other = bench.show(sort, Mistaken())
    assert mean(other, "evaluator_top_share") == mean(bench.show(sort), "evaluator_top_share")
    assert mean(other, "evaluator_value") == pytest.approx(-mean(bench.show(sort), "evaluator_value"))


def test_every_generator_is_listed_with_its_nearest(bench: list_bench.Bench, pool: GeneratorPool) -> None:
    listed = list_bench.generator_list(bench, pool)
    assert len(listed) >= 100
    assert listed[-1]["name"] == "PRM, logged slates"
    assert all(0 <= row["nearest_distance"] <= row["mean_distance"] <= 1 for row in listed)
    assert all(row["nearest"] != row["name"] for row in listed)


def test_orders_are_fixed_before_any_world_is_seen() -> None:
    orders = list_bench.generator_orders(9, 3)
    assert orders == list_bench.generator_orders(9, 3)
    assert all(sorted(order) == list(range(9)) for order in orders)


def test_a_world_without_evaluator_is_refused() -> None:
    with pytest.raises(ValueError, match="has no list evaluator"):
        list_bench.Bench(short_video_world(num_users=10, num_items=60), 4, 6, seed=0)


def test_generators_that_repeat_others_are_left_out(
    world: World, pool: GeneratorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = {"reversed": Backward(), "twin": Backward()}
    with pytest.raises(ValueError, match=r"need 100 generators that differ in .*, got \d\d$"):
        list_bench.generator_pool(world, twins, 6)  # this small world tells too few apart
    monkeypatch.setattr(list_bench, "SET_SIZES", (1, 2, 3))
    kept = list_bench.generator_pool(world, twins, 6).names
    assert "reversed" in kept
    assert "twin" not in kept
    assert 10 < len(kept) < len(pool.names)
    assert kept[0] == "sort +1 watch_time"  # where every search begins
