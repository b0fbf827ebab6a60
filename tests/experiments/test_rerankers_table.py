"""The rerankers table in miniature: what must hold whatever the numbers are."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.baselines import PointwiseGreedy, RandomSlate, RetrieverOrder
from agents.rerankers.heuristics import HeuristicGenerators
from agents.rerankers.multi_generator import GeneratorPool, PolicyLists
from experiments.report.frames import rows_of
from experiments.report.reranker_curves import curves
from experiments.tables import list_bench, reranker_methods, reranker_training, rerankers, settings
from experiments.tables.runner import judged
from experiments.tables.runs import BLOCKS, _plain_cell
from experiments.tables.settings import LogSource, Setting
from recsim_env.assumptions import TagRepeatEffect
from recsim_env.known_worlds import short_video_world
from recsim_env.results import Cell, EvaluationResult
from recsim_env.simulator import Simulator
from recsim_env.types import Decision, ListValue, Request
from recsim_env.world import World
from reward_models.recommender.list_evaluator import SlateEvaluator
from reward_models.recommender.list_evaluator_network import ListEvaluatorConfig, ListModel, Sizes, request_inputs

SET_SIZES = list_bench.SET_SIZES


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
def bench(world: World) -> list_bench.Bench:
    return list_bench.Bench(world, 30, seed=11)


@pytest.fixture(scope="module")
def pool(world: World) -> GeneratorPool:
    """All generators, those that repeat others' lists in this small world too."""
    return GeneratorPool(
        [HeuristicGenerators.standard(world, 6), PolicyLists({"PRM, logged slates": RetrieverOrder(6)})]
    )


@pytest.fixture(scope="module")
def cells(bench: list_bench.Bench, pool: GeneratorPool) -> dict[str, Cell]:
    found = {**list_bench.reference_cells(bench), **list_bench.generator_cells(bench, pool, 5)}
    found |= list_bench.pressure_cells(bench, reranker_training.share_name(0.02), Mistaken())
    noisy, small = bench.show([RandomSlate(6), PointwiseGreedy(6)]), bench.show([RandomSlate(6)])
    found |= reranker_methods.consumed({"GoalRank, noise 0.2": noisy, "GoalRank, 10k": small}, 512)
    for name in reranker_training.SEARCHES:
        searches = [[PointwiseGreedy(6), RandomSlate(6), RandomSlate(6)]] * 2
        found |= reranker_methods.consumed(list_bench.search_cells(bench, f"CLIG, {name}", searches), 512)
    return found


def mean(cell: Cell, metric: str) -> float:
    return float(cell.value(metric).mean())


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
    declared = list_bench.Bench(world.replace(evaluator=evaluator), 20, seed=11)
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


def checks_of(cells: dict[str, Cell], setting: str = "synthetic") -> dict[str, dict[str, Any]]:
    """The table's checks of some rows, by name."""
    contents = []
    for name, cell in cells.items():
        for seed in range(len(cell.value("true_list_value"))):
            its = slice(seed, seed + 1)
            ratios = {metric: (over[its], under[its]) for metric, (over, under) in cell.ratios.items()}
            one = dataclasses.replace(cell, ratios=ratios, totals={})
            card = {"setting": setting, "world": "truth", "seed": seed}
            contents.append({"card": card, "cells": {name: _plain_cell(one)}, "checks": []})
    return {check["name"]: check for check in judged(rerankers.OUTLINE, contents).checks}


def test_ratios_are_paired_by_request_and_seed(cells: dict[str, Cell]) -> None:
    own = cells["pointwise greedy"]
    found = checks_of({"MG-E-100": own, "MG-E-20": own})["MG-E-100 / MG-E-20"]
    assert (found["value"], found["low"], found["high"], found["verdict"]) == (1.0, 1.0, 1.0, "holds")
    many = cells["GoalRank, noise 0.2"]  # a random policy and the sort
    found = checks_of({"GoalRank": many, "MG-E-100": own})["GoalRank / MG-E-100"]
    worse = mean(cells["random"], "true_list_value") / mean(own, "true_list_value")
    value = many.value("true_list_value") / own.value("true_list_value")
    assert value[1] == 1.0
    assert value[0] == pytest.approx(worse, rel=0.2)
    assert (found["value"], found["seeds"]) == (pytest.approx(value.mean()), 2)


def test_one_training_run_carries_no_claim_and_a_real_log_none_at_all(cells: dict[str, Cell]) -> None:
    everything = {name: cells["random"] for pair in rerankers.CHECKS for name in pair[:2]}
    trained = {name: cells["GoalRank, 10k"] for name in everything if name.startswith(("GoalRank", "CLIG"))}
    found = checks_of(everything | trained)
    assert {f"{name} / {other}" for name, other, _, _ in rerankers.CHECKS} <= set(found)
    assert found["MG-E-100 / MG-E-20"]["verdict"] == "holds"  # equal: 1 is below 1.01
    assert found["GoalRank / MG-E-100"]["verdict"] == "no bar"
    two = checks_of(everything | trained | {"GoalRank": cells["GoalRank, noise 0.2"]})
    assert two["GoalRank / MG-E-100"]["bar"] == 1.03
    assert {check["verdict"] for check in checks_of(everything | trained, "kuairand_pure-none").values()} == {"no bar"}


def test_seconds_of_sessions_stand_beside_those_of_requests(cells: dict[str, Cell]) -> None:
    seconds = np.arange(250.0)[None]
    played = Cell(ratios={"session_watch_time": (seconds, np.ones_like(seconds))}, totals={}).merged(BLOCKS)
    found = reranker_methods.with_sessions({"best of 100": cells["best of 100"]}, {"best of 100": played})[
        "best of 100"
    ]
    assert found.value("session_watch_time") == pytest.approx([124.5])
    assert found.value("true_list_value") == pytest.approx(cells["best of 100"].value("true_list_value"))


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


def test_training_runs_are_distinct_and_share_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "world_folders", lambda setting: {"A": Path("w")})
    monkeypatch.setattr(settings, "digests", lambda setting, world: {"world_digest": "d"})
    setting = Setting(source=LogSource(), name="synthetic", strength=1.0)
    runs = reranker_training.training_runs(setting, reranker_training.Budget(), "all")
    flat = [run for some in runs.values() for run in some]
    assert len({run.run_dir for run in flat}) == len(flat)
    assert {(run.iterations, run.num_envs, run.steps_per_iteration, run.env) for run in flat} == {
        (60, 64, 8, "recsim_env:recsim_env/Request-v0")
    }
    claimed = {name for pair in rerankers.CHECKS for name in pair[:2] if name.startswith("GoalRank")}
    assert claimed <= set(runs)
    assert set(reranker_training.training_runs(setting, reranker_training.Budget(), "plain")) == {"GoalRank"}


def test_curves_show_every_set_size_and_evaluator(cells: dict[str, Cell], tmp_path: Path) -> None:
    figure = curves(rows_of(EvaluationResult(cells={(name, "truth"): cell for name, cell in cells.items()})))
    figure.savefig(tmp_path / "curves.png")
    assert len(figure.axes) == 4
    assert len(figure.axes[1].lines[0].get_xdata()) == len(list_bench.LISTS_TRIED) + 1
    assert len(figure.axes[0].lines[0].get_xdata()) == len(SET_SIZES)


def test_a_world_without_evaluator_is_refused() -> None:
    with pytest.raises(ValueError, match="has no list evaluator"):
        list_bench.Bench(short_video_world(num_users=10, num_items=60), 4, seed=0)


def test_generators_that_repeat_others_are_left_out(
    world: World, pool: GeneratorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = {"reversed": Backward(), "twin": Backward()}
    with pytest.raises(ValueError, match=r"need 100 generators that differ in .*, got \d\d$"):
        list_bench.generator_pool(world, twins)  # this small world tells too few apart
    monkeypatch.setattr(list_bench, "SET_SIZES", (1, 2, 3))
    kept = list_bench.generator_pool(world, twins).names
    assert "reversed" in kept
    assert "twin" not in kept
    assert 10 < len(kept) < len(pool.names)
    assert kept[0] == "sort +1 watch_time"  # where every search begins
