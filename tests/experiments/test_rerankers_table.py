"""The rerankers table in miniature: what must hold whatever the numbers are."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.baselines import PointwiseGreedy, RandomSlate, RetrieverOrder
from agents.goalrank import GoalRankConfig
from agents.list_policy import ListPolicy
from agents.networks import RequestShape
from agents.rerankers.heuristics import HeuristicGenerators
from agents.rerankers.multi_generator import GeneratorPool, PolicyLists
from experiments import results_page
from experiments.recipes import TrainRun
from experiments.tables import reranker_plots, reranker_training, rerankers
from recsim_env.assumptions import TagRepeatEffect
from recsim_env.known_worlds import short_video_world
from recsim_env.results import Cell, EvaluationResult, as_json
from recsim_env.simulator import Simulator
from recsim_env.types import Decision, ListValue, Request
from recsim_env.world import World
from reward_models.recommender.list_evaluator import SlateEvaluator
from reward_models.recommender.list_evaluator_network import ListEvaluatorConfig, ListModel, Sizes, request_inputs

SET_SIZES = rerankers.SET_SIZES


class PredictedSeconds:
    """Adds up predicted seconds, less a little for each place they come later."""

    def score(self, request: Request, items_BGK: Tensor) -> ListValue:
        match = (items_BGK.unsqueeze(-1) == request.candidates_BC[:, None, None]).to(torch.float32)
        seconds = (match * request.predicted_BCF[:, None, None, :, 0]).sum(-1)
        value = (seconds * 0.9 ** torch.arange(items_BGK.shape[2])).sum(-1)
        return ListValue(value, seconds, torch.zeros_like(value))


class Mistaken:
    """Likes what users do not watch."""

    def score(self, request: Request, items_BGK: Tensor) -> ListValue:
        value = PredictedSeconds().score(request, items_BGK)
        return value._replace(value_BG=-value.value_BG)


class Backward:
    """The sort upside down."""

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        order = request.predicted_BCF[..., 0].argsort(dim=1)[:, :6]
        return Decision(request.candidates_BC.gather(1, order))


@pytest.fixture(scope="module")
def world() -> World:
    return short_video_world(num_users=60, num_items=120, seed=3).replace(evaluator=PredictedSeconds())


@pytest.fixture(scope="module")
def bench(world: World) -> rerankers.Bench:
    return rerankers.Bench(world, 30, seed=11)


@pytest.fixture(scope="module")
def pool(world: World) -> GeneratorPool:
    """All generators, those that repeat others' lists in this small world too."""
    return GeneratorPool(
        [HeuristicGenerators.standard(world, 6), PolicyLists({"PRM, logged slates": RetrieverOrder(6)})]
    )


@pytest.fixture(scope="module")
def cells(bench: rerankers.Bench, pool: GeneratorPool) -> dict[str, Cell]:
    contestants = reranker_training.Contestants(
        trained={"GoalRank, noise 0.2": [RandomSlate(6), PointwiseGreedy(6)], "GoalRank, 10k": [RandomSlate(6)]},
        searches={
            name: [[PointwiseGreedy(6), RandomSlate(6), RandomSlate(6)]] * 2 for name in reranker_training.GENERATORS
        },
        from_slates={"PRM, logged slates": RetrieverOrder(6)},
        evaluators={reranker_training.share_name(0.02): Mistaken()},
    )
    return rerankers.measure(bench, pool, contestants, num_orders=5)


def mean(cell: Cell, metric: str) -> float:
    return float(cell.value(metric).mean())


def test_the_evaluator_never_prefers_fewer_generators(cells: dict[str, Cell]) -> None:
    values = [mean(cells[f"MG-E-{k}"], "evaluator_value") for k in SET_SIZES]
    assert values == sorted(values)
    assert values[-1] > values[0]
    assert mean(cells["evaluator search"], "evaluator_value") >= mean(cells["pointwise greedy"], "evaluator_value")


def test_the_harder_a_wrong_evaluator_is_searched_the_worse_the_lists(cells: dict[str, Cell]) -> None:
    tried = [cells[f"evaluator of 2% of users, best of {k}"] for k in rerankers.LISTS_TRIED]
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
    declared = rerankers.Bench(world.replace(evaluator=evaluator), 20, seed=11)
    found = rerankers.measure(declared, pool, reranker_training.Contestants(trained={}), num_orders=2)
    own = {name: mean(cell, "evaluator_value") for name, cell in found.items()}
    tied = [own[f"additive evaluator, {how}"] for how in ("sort", "best of 100", "MG-E-100", "search")]
    assert max(tied) < 1.01 * min(tied)
    assert own["evaluator search"] > 1.05 * max(tied), "tags that repeat cost nothing"


def test_comprehensiveness_of_sets_by_hand(bench: rerankers.Bench) -> None:
    """A list and its reverse: 1 in either order of the pair; two equal lists have none."""
    sort = PointwiseGreedy(6)

    def reverse(request: Request, generator: torch.Generator) -> Decision:
        return Decision(sort(request, generator).items_BK.flip(1))

    lists = PolicyLists({str(k): sort if k else reverse for k in range(100)})
    found = rerankers.comprehensiveness(bench, lists, {"reward only": [[sort, reverse], [sort, sort]]}, num_orders=1)
    by_set = {row["set"]: row for row in found}
    assert by_set["CLIG, reward only, 2"]["pair_order"] == 1.0  # the mean of 2 and 0
    assert by_set["CLIG, reward only, 2"]["embedding"] == pytest.approx(0.0, abs=1e-3)  # the same videos
    assert by_set["MG-E-100"]["pair_order"] == 2 * 99


def test_values_are_those_of_the_shown_lists(bench: rerankers.Bench, cells: dict[str, Cell]) -> None:
    items = PointwiseGreedy(6)(bench.request, torch.Generator()).items_BK.unsqueeze(1)
    true = bench.simulator.expected(bench.state, items).watch_time_BG[:, 0]
    np.testing.assert_allclose(cells["pointwise greedy"].ratios["true_list_value"][0][0], true, rtol=1e-6)
    gap = mean(cells["pointwise greedy"], "evaluator_value") - mean(cells["pointwise greedy"], "true_list_value")
    assert mean(cells["pointwise greedy"], "evaluator_gap") == pytest.approx(gap)


def test_picking_among_sets_is_a_plain_argmax(bench: rerankers.Bench) -> None:
    value, true = torch.rand(30, 4, generator=torch.Generator().manual_seed(1)), torch.arange(120.0).view(30, 4)
    picked = bench.pick(value, true, [[2, 0], [3]])
    expected = [(true[b, 2 if value[b, 2] >= value[b, 0] else 0] + true[b, 3]) / 2 for b in range(30)]
    np.testing.assert_allclose(picked.ratios["true_list_value"][0][0], torch.stack(expected), rtol=1e-6)


def test_the_top_share_counts_shown_lists_by_the_worlds_own_evaluator(bench: rerankers.Bench) -> None:
    high = bench.high_B.unsqueeze(1)
    value = torch.cat([high + 1, high - 3], dim=1)  # one list above the bar, one below: half are above, not none
    picked = bench.pick(value, value, [[0], [1]])
    assert mean(picked, "evaluator_top_share") == 0.5
    sort = [PointwiseGreedy(6)]
    other = bench.show(sort, Mistaken())
    assert mean(other, "evaluator_top_share") == mean(bench.show(sort), "evaluator_top_share")
    assert mean(other, "evaluator_value") == pytest.approx(-mean(bench.show(sort), "evaluator_value"))


def test_ratios_are_paired_by_request_and_seed(cells: dict[str, Cell]) -> None:
    own = rerankers.ratio(cells, "pointwise greedy", "pointwise greedy")
    row = EvaluationResult(cells={("a", "w"): own}).row("a", "w", "ratio")
    assert (row.mean, row.session_low, row.session_high) == (1.0, 1.0, 1.0)
    two = rerankers.ratio(cells, "GoalRank, noise 0.2", "pointwise greedy").value("ratio")
    other_way = rerankers.ratio(cells, "pointwise greedy", "GoalRank, noise 0.2").value("ratio")
    assert len(two) == len(other_way) == 2
    assert two[0] < two[1] == 1.0


def test_one_training_run_carries_no_claim(cells: dict[str, Cell]) -> None:
    everything = {name: cells["random"] for pair in rerankers.CHECKS for name in pair[:2]} | {
        "GoalRank": cells["GoalRank, noise 0.2"]
    }
    found = {check["name"]: check for check in rerankers.checks(everything, "here", with_bars=True)}
    assert len(found) == len(rerankers.CHECKS)
    assert found["here: GoalRank / MG-E-100, true list value"]["bar"] == 1.03
    assert found["here: GoalRank, 1m / GoalRank, true list value"]["verdict"] == "no bar"
    assert found["here: MG-E-100 / MG-E-20, true list value"]["verdict"] == "holds"  # equal: 1 is below 1.01


def test_every_generator_is_listed_with_its_nearest(bench: rerankers.Bench, pool: GeneratorPool) -> None:
    listed = rerankers.generator_list(bench, pool)
    assert len(listed) >= 100
    assert listed[-1]["name"] == "PRM, logged slates"
    assert all(0 <= row["nearest_distance"] <= row["mean_distance"] <= 1 for row in listed)
    assert all(row["nearest"] != row["name"] for row in listed)


def test_orders_are_fixed_before_any_world_is_seen() -> None:
    orders = rerankers.generator_orders(9, 3)
    assert orders == rerankers.generator_orders(9, 3)
    assert all(sorted(order) == list(range(9)) for order in orders)


def test_training_runs_are_distinct_and_share_their_budget() -> None:
    runs = reranker_training.training_runs(Path("w"), Path("f"), reranker_training.Budget(), "all")
    flat = [run for some in runs.values() for run in some]
    assert len({run.run_dir for run in flat}) == len(flat)
    assert {(run.iterations, run.num_envs, run.steps_per_iteration, run.env) for run in flat} == {
        (60, 64, 8, "recsim_env:recsim_env/Request-v0")
    }
    assert {name for pair in rerankers.CHECKS for name in pair[:2] if name.startswith("GoalRank")} <= set(runs)


def test_a_policy_of_other_settings_is_not_taken_for_the_one_asked_for(tmp_path: Path) -> None:
    shape = RequestShape(num_items=9, num_signals=1, num_user_features=1, num_candidate_features=1, slate_size=2)
    run = TrainRun(goalrank=GoalRankConfig(seed=1), size="10k", run_dir=tmp_path)
    ListPolicy(run.settings, shape).save(tmp_path / "policy")
    assert reranker_training.train_all({"a": [run]})["a"][0].config == run.settings
    with pytest.raises(ValueError, match="move it away"):
        reranker_training.train_all({"a": [dataclasses.replace(run, size=None)]})
    (tmp_path / "checkpoints" / "00000040").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a policy of 40 rounds, this table needs 120"):
        reranker_training.train_all({"a": [run]})


def test_page_and_plot_show_every_method(
    cells: dict[str, Cell], bench: rerankers.Bench, pool: GeneratorPool, tmp_path: Path
) -> None:
    result = EvaluationResult(cells={(name, "truth"): cell for name, cell in cells.items()})
    rows = [as_json(row) for row in result.rows()]
    content = {
        "rows": rows, "checks": rerankers.checks(cells, "truth", with_bars=True), "world": "truth", "orders": 5,
        "num_requests": 30, "generators": rerankers.generator_list(bench, pool), "budget": {"iterations": 60},
        "list_effect": {"declared": 0.0, "true": 1.0},
    }  # fmt: skip
    page = "\n".join(results_page._rerankers("small", [content]))
    assert all(f"| {name} |" in page for name in cells)
    figure = reranker_plots.curves({"truth": rows})
    figure.savefig(tmp_path / "curves.png")
    assert len(figure.axes) == 4
    assert len(figure.axes[1].lines[0].get_xdata()) == len(rerankers.LISTS_TRIED) + 1
    assert len(figure.axes[0].lines[0].get_xdata()) == len(SET_SIZES)


def test_a_world_without_evaluator_is_refused() -> None:
    with pytest.raises(ValueError, match="has no list evaluator"):
        rerankers.Bench(short_video_world(num_users=10, num_items=60), 4, seed=0)


def test_generators_that_repeat_others_are_left_out(
    world: World, pool: GeneratorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = {"reversed": Backward(), "twin": Backward()}
    with pytest.raises(ValueError, match=r"need 100 generators that differ in .*, got \d\d$"):
        rerankers.generator_pool(world, twins)  # this small world tells too few apart
    monkeypatch.setattr(rerankers, "SET_SIZES", (1, 2, 3))
    kept = rerankers.generator_pool(world, twins).names
    assert "reversed" in kept
    assert "twin" not in kept
    assert 10 < len(kept) < len(pool.names)
    assert kept[0] == "sort +1 watch_time"  # where every search begins
