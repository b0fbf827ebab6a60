"""The methods of the rerankers table: what each one trains, and how it is measured on a world's requests."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from agents.baselines import BestOfLists, PointwiseGreedy
from agents.policies import load_policy, policy_card
from agents.rerankers import list_bench
from agents.rerankers.list_bench import Bench
from agents.rerankers.multi_generator import GeneratorEvaluator, GeneratorPool, SampledLists
from experiments.recipes import TrainRun
from experiments.tables.goalrank import GoalRankTable
from experiments.tables.reranker_training import (
    SEARCHES,
    SHARES_OF_LOG,
    Budget,
    evaluator_of_share,
    search_card,
    searched,
    share_name,
    slate_generators,
    training_runs,
)
from experiments.tables.runs import BLOCKS, Measured
from experiments.tables.settings import SLATE, TRAINING_WORLD, Setting, method_card, train_policy, worlds_of
from recsim_env.evaluation import evaluate
from recsim_env.results import Cell
from recsim_env.types import Policy

SESSIONS, FIRST_SESSION, FIRST_REQUEST = 2000, 6_000_000, 5_000_000
"""Sessions of each policy that is judged in whole sessions too, and seeds of the first session and request."""

IN_SESSIONS = ("GoalRank", "GoalRank, trained in sessions")
"""Trained rankers that are judged in whole sessions, too."""


class Entry(NamedTuple):
    """One method of a setting."""

    show: Callable[[Bench, int], Measured]
    """Measures it with a training seed on the requests of a world."""
    seeds: int = 1
    card: Callable[[int], Mapping[str, Any]] = lambda seed: {}
    """What shapes it beside its name."""
    prepare: Callable[[int], object] = lambda seed: None
    """Trains it with a seed."""


def entries(setting: Setting, budget: Budget, orders: int) -> dict[str, Entry]:
    """Every method of a setting: all at x1, what is claimed under a declared effect, else GoalRank alone."""
    everything = setting.strength == 1.0
    found = {
        "baselines": Entry(_baselines),
        "generators": Entry(
            lambda bench, _: _generators(setting, bench, orders),
            prepare=lambda _: pool_of(setting),
        ),
    }
    variants = "all" if everything else "claimed" if setting.declared_effect else "plain"
    for name, runs in training_runs(setting, budget, variants).items():
        found[name] = _trained(name, runs)
    if setting.strength in (0.0, 1.0):  # where the other table trains it in sessions
        sessions = GoalRankTable(source=setting.source)
        runs = [sessions.training(setting, seed) for seed in range(sessions.seeds)]
        found["GoalRank, trained in sessions"] = _trained("GoalRank, trained in sessions", runs)
    if everything:
        found |= {share_name(share): _share(setting, share) for share in SHARES_OF_LOG}
        found |= {f"CLIG, {name}": _search(setting, budget, name) for name in SEARCHES}
    return found


def _baselines(bench: Bench, _: int) -> Measured:
    best = BestOfLists(bench.evaluator, SLATE, num_lists=100)
    played = in_sessions(bench, {"pointwise greedy": PointwiseGreedy(SLATE), "best of 100": best})
    return Measured(cells=with_sessions(list_bench.reference_cells(bench), played))


def _generators(setting: Setting, bench: Bench, orders: int) -> Measured:
    pool, fitted = pool_of(setting), slate_generators(setting)
    cells = list_bench.generator_cells(bench, pool, orders)
    if learned := [name for name in fitted if name in pool.names]:
        cells |= list_bench.generator_cells(bench, pool.without(learned), orders, note=", hand-written")
    most = max(list_bench.SET_SIZES)
    largest = pool.some(list_bench.generator_orders(len(pool.names), 1)[0][:most])
    cells |= list_bench.additive_cells(bench, largest)
    cells |= {name: bench.show([policy]) for name, policy in fitted.items()}
    played = in_sessions(bench, {f"MG-E-{most}": GeneratorEvaluator(largest, bench.evaluator)})
    return Measured(cells=with_sessions(cells, played), extra={"generators": list_bench.generator_list(bench, pool)})


def _trained(name: str, runs: list[TrainRun]) -> Entry:
    def show(bench: Bench, seed: int) -> Measured:
        folder = train_policy(runs[seed])
        policy = load_policy(folder)
        cells = {name: bench.show([policy])}
        if name == "GoalRank" and seed == 0:
            draws = GeneratorEvaluator(SampledLists(policy, 20), bench.evaluator)
            cells[f"{name}, best of 20 draws"] = bench.show([draws])
        if name in IN_SESSIONS:
            cells = with_sessions(cells, in_sessions(bench, {name: policy}))
        return Measured(cells=consumed(cells, int(policy_card(folder)["training"]["requests"])))

    return Entry(show, len(runs), lambda seed: method_card(runs[seed]), prepare=lambda seed: train_policy(runs[seed]))


def _share(setting: Setting, share: float) -> Entry:
    def show(bench: Bench, _: int) -> Measured:
        return Measured(cells=list_bench.pressure_cells(bench, share_name(share), evaluator_of_share(setting, share)))

    return Entry(show)


def _search(setting: Setting, budget: Budget, name: str) -> Entry:
    def show(bench: Bench, seed: int) -> Measured:
        found = searched(setting, budget, name, seed)
        cells = list_bench.search_cells(bench, f"CLIG, {name}", [found])
        return Measured(cells=consumed(cells, budget.iterations * 512 * (len(found) - 1)))

    return Entry(
        show,
        budget.seeds,
        lambda seed: search_card(budget, name, seed),
        lambda seed: searched(setting, budget, name, seed),
    )


@cache
def bench_of(setting: Setting, world: str, num_requests: int) -> Bench:
    """The requests of a world on which lists are valued."""
    return Bench(worlds_of(setting)[world], num_requests, SLATE, seed=FIRST_REQUEST)


@cache
def pool_of(setting: Setting) -> GeneratorPool:
    """MG-E's generators: hand-written ones, and what is fitted to logged slates."""
    return list_bench.generator_pool(worlds_of(setting)[TRAINING_WORLD], slate_generators(setting), SLATE)


def in_sessions(bench: Bench, policies: Mapping[str, Policy]) -> dict[str, Cell]:
    """The same policies in whole sessions: seconds watched."""
    result = evaluate(policies, {"here": bench.simulator.world}, num_sessions=SESSIONS, seed=FIRST_SESSION)
    return {name: cell.merged(BLOCKS) for (name, _), cell in result.cells.items()}


def with_sessions(cells: Mapping[str, Cell], played: Mapping[str, Cell]) -> dict[str, Cell]:
    """Cells of single requests with the seconds watched in sessions beside them, in as many blocks."""
    found = {name: cell.merged(BLOCKS) for name, cell in cells.items()}
    for name, sessions in played.items():
        seconds = {"session_watch_time": sessions.ratios["session_watch_time"]}
        found[name] = dataclasses.replace(found[name], ratios={**found[name].ratios, **seconds})
    return found


def consumed(cells: Mapping[str, Cell], requests: int) -> dict[str, Cell]:
    """Cells that say what training asked of world A."""
    return {
        name: dataclasses.replace(cell, feedback="one slate", world_requests=requests) for name, cell in cells.items()
    }
