"""Rerankers beside each other on the same requests, with the same predictor and the same list evaluator.

    python -m experiments.compare rerankers                    synthetic logs with the list effect x1, x0.5 and x2
    python -m experiments.compare rerankers --data <folder>    a real log, with the declared list effect and without

Every trained ranker is a recipe of ``experiments.train`` in ``Request-v0`` with the same number of requests. A method
is judged by the world's true expectation of the lists that it shows for fixed first requests of sessions, and a few of
them also in whole sessions. Generators are tried in random orders that are drawn before any world is opened. Trained
policies are kept in ``--folder``, finished worlds leave one JSON each in ``experiments/results``; what is there is not
run again.

Metrics: ``true_list_value`` and ``evaluator_value`` (expected seconds of a shown list, in truth and by the evaluator),
``evaluator_gap`` (the excess of the second), ``evaluator_top_share`` (share of requests whose list the evaluator puts
above 99 % of 200 lists drawn around the pointwise sort), ``session_watch_time``. Checks are ratios of true list values.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.baselines import BestOfLists, EvaluatorSearch, PointwiseGreedy, RandomSlate
from agents.rerankers.complementarity import DISTANCES, Distance, distinct, list_comprehensiveness, list_distances
from agents.rerankers.heuristics import HeuristicGenerators
from agents.rerankers.multi_generator import (
    GeneratorEvaluator,
    GeneratorPool,
    Generators,
    PolicyLists,
    SampledLists,
    check_generators,
    items_of,
)
from experiments.tables.reranker_training import SHARES_OF_LOG, SLATE, Contestants, evaluator_of, share_name
from recsim_env.evaluation import evaluate, true_list_values
from recsim_env.results import Cell, EvaluationResult, Row, judge, to_plain
from recsim_env.simulator import Simulator
from recsim_env.slates import best_first
from recsim_env.types import Decision, ListEvaluator, Policy, Request
from recsim_env.world import World
from reward_models.recommender.list_evaluator import SlateEvaluator

SESSIONS = 2000
"""Sessions of each policy that is judged in whole sessions too."""
USUAL_LISTS = 200
"""Lists of each request that a shown list is compared with for ``evaluator_top_share``."""
SET_SIZES = (1, 2, 3, 5, 10, 20, 50, 100)
"""Numbers of generators, k, of the MG-E curve."""
LISTS_TRIED = (1, 10, 100, 1000)
"""Numbers of lists that evaluators of more or less log choose from."""
DISTANCE_REQUESTS = 100
"""Requests over which distances between generators (pair order) are averaged."""
LEAST_DISTANCE = 0.005
"""Generators that lie closer together count as one."""

_REQUESTS_AT_ONCE = 100


class Bench:
    """The first requests of some sessions in one world; values lists for them."""

    def __init__(self, world: World, num_requests: int, seed: int):
        self.simulator = Simulator(world, slate_size=SLATE)
        self.state = self.simulator.start(num_requests, seed)
        self.request = self.state.request
        self.evaluator = evaluator_of(world)
        usual = BestOfLists(self.evaluator, SLATE, num_lists=USUAL_LISTS)
        usual_BG = self.evaluated(usual.propose(self.request, torch.Generator().manual_seed(seed)))
        self.high_B = usual_BG.quantile(0.99, dim=1)

    def evaluated(self, items_BGK: Tensor, evaluator: ListEvaluator | None = None) -> Tensor:
        """The evaluator's values (B, G); by default the world's own."""
        evaluator = evaluator or self.evaluator
        rows = torch.split(torch.arange(len(items_BGK)), _REQUESTS_AT_ONCE)
        parts = [(Request(*(tensor[row_R] for tensor in self.request)), items_BGK[row_R]) for row_R in rows]
        return torch.cat([evaluator.score(request, part).value_BG for request, part in parts])

    def true(self, items_BGK: Tensor) -> Tensor:
        """True values (B, G)."""
        return true_list_values(self.simulator, self.state, items_BGK, _REQUESTS_AT_ONCE)

    def cell(self, value_SB: Tensor, true_SB: Tensor, own_SB: Tensor | None = None) -> Cell:
        """All metrics of lists shown to each request.

        Args:
            value_SB: the values that the method's evaluator gives them.
            true_SB: the true ones.
            own_SB: the values of the world's own evaluator, where the method asked another.
        """
        ones = np.ones(true_SB.shape)
        value, true = value_SB.double().numpy(), true_SB.double().numpy()
        top = ((value_SB if own_SB is None else own_SB) > self.high_B).double().numpy()
        return Cell(
            ratios={
                "true_list_value": (true, ones),
                "evaluator_value": (value, ones),
                "evaluator_gap": (value - true, ones),
                "evaluator_top_share": (top, ones),
            },
            totals={},
        )

    def show(self, choose: Sequence[Policy], evaluator: ListEvaluator | None = None) -> Cell:
        """Plays one policy for each training seed; they asked this evaluator, by default the world's own."""
        generator = torch.Generator().manual_seed(0)
        items_BSK = torch.stack([self._answers(policy, generator) for policy in choose], dim=1)
        own_SB = self.evaluated(items_BSK).T
        return self.cell(
            self.evaluated(items_BSK, evaluator).T if evaluator else own_SB, self.true(items_BSK).T, own_SB
        )

    def _answers(self, policy: Policy, generator: torch.Generator) -> Tensor:
        """A policy's slates (B, K)."""
        rows = torch.split(torch.arange(len(self.request.user_B)), _REQUESTS_AT_ONCE)
        parts = [Request(*(tensor[row_R] for tensor in self.request)) for row_R in rows]
        return torch.cat([policy(part, generator).items_BK for part in parts])

    def pick(self, value_BG: Tensor, true_BG: Tensor, sets: Sequence[Sequence[int]]) -> Cell:
        """The evaluator's choice from sets of generators, averaged over the sets."""
        picked = [chosen(value_BG[:, list(some)], true_BG[:, list(some)]) for some in sets]
        value_SB, true_SB = torch.stack(picked, dim=1)
        of_sets = self.cell(value_SB, true_SB)
        means = {name: (over.mean(axis=0, keepdims=True), under[:1]) for name, (over, under) in of_sets.ratios.items()}
        return Cell(ratios=means, totals={})

    def pick_learned(self, searches: Sequence[Sequence[Policy]], k: int) -> Cell:
        """The evaluator's choice from the first k generators of each search; one search for each training seed."""
        picked = []
        for policies in searches:
            lists = PolicyLists({str(index): policy for index, policy in enumerate(policies[:k])})
            items_BGK = items_of(self.request, lists.propose(self.request, torch.Generator()))
            picked.append(chosen(self.evaluated(items_BGK), self.true(items_BGK)))
        value_SB, true_SB = torch.stack(picked, dim=1)
        return self.cell(value_SB, true_SB)


def chosen(value_BG: Tensor, true_BG: Tensor) -> Tensor:
    """The evaluator's and the true value, (2, B), of the list that the evaluator likes best."""
    best_B1 = value_BG.argmax(dim=1, keepdim=True)
    return torch.cat([value_BG.gather(1, best_B1), true_BG.gather(1, best_B1)], dim=1).T


def measure(bench: Bench, pool: GeneratorPool, contestants: Contestants, num_orders: int) -> dict[str, Cell]:
    """Every method on the same requests."""
    evaluator = bench.evaluator
    cells = {
        "random": bench.show([RandomSlate(SLATE)]),
        "pointwise greedy": bench.show([PointwiseGreedy(SLATE)]),
        "best of 20": bench.show([BestOfLists(evaluator, SLATE, num_lists=20)]),
        "best of 100": bench.show([BestOfLists(evaluator, SLATE, num_lists=100)]),
        "evaluator search": bench.show([EvaluatorSearch(evaluator, SLATE)]),
    }
    check_generators(pool, bench.request, SLATE)
    items_BGK = items_of(bench.request, pool.propose(bench.request, torch.Generator()))
    value_BG, true_BG = bench.evaluated(items_BGK), bench.true(items_BGK)
    orders = generator_orders(len(pool.names), num_orders)
    for k in SET_SIZES:
        cells[f"MG-E-{k}"] = bench.pick(value_BG, true_BG, [order[:k] for order in orders])
    if isinstance(evaluator, SlateEvaluator) and (evaluator.listwise or evaluator.list_effect is not None):
        cells |= _additive_control(bench, evaluator.additive(), pool.some(orders[0][:100]))
    for name, fitted in contestants.evaluators.items():
        cells |= _search_pressure(bench, name, fitted)
    for name, generator in contestants.from_slates.items():
        cells[name] = bench.show([generator])
    for name, policies in contestants.trained.items():
        cells[name] = bench.show(policies)
    if "GoalRank" in contestants.trained:
        first = SampledLists(contestants.trained["GoalRank"][0], 20)  # type: ignore[arg-type]
        cells["GoalRank, best of 20 draws"] = bench.show([GeneratorEvaluator(first, evaluator)])
    sort = 0  # the first heuristic is the pointwise sort, where every search begins
    for k in (2, 3):
        others = [[sort, *[index for index in order if index != sort][: k - 1]] for order in orders]
        cells[f"pointwise and random, {k}"] = bench.pick(value_BG, true_BG, others)
    for name, seeds in contestants.searches.items():
        for k in range(2, len(seeds[0]) + 1):
            cells[f"CLIG, {name}, {k}"] = bench.pick_learned(seeds, k)
    return cells


def _additive_control(bench: Bench, evaluator: ListEvaluator, generators: Generators) -> dict[str, Cell]:
    """List methods under an evaluator that adds up single videos, where a sort by it is as good as any."""

    def sort(request: Request, generator: torch.Generator) -> Decision:
        single_BC = evaluator.score(request, request.candidates_BC.unsqueeze(2)).value_BG
        return Decision(best_first(request, single_BC, SLATE))

    return {
        "additive evaluator, sort": bench.show([sort]),
        "additive evaluator, best of 100": bench.show([BestOfLists(evaluator, SLATE, num_lists=100)]),
        "additive evaluator, MG-E-100": bench.show([GeneratorEvaluator(generators, evaluator)]),
        "additive evaluator, search": bench.show([EvaluatorSearch(evaluator, SLATE)]),
    }


def _search_pressure(bench: Bench, name: str, evaluator: ListEvaluator) -> dict[str, Cell]:
    """An evaluator that chooses from more and more lists, and is climbed at last."""
    tried = {f"best of {k}": BestOfLists(evaluator, SLATE, num_lists=k) for k in LISTS_TRIED}
    policies: dict[str, Policy] = {**tried, "search": EvaluatorSearch(evaluator, SLATE)}
    return {f"{name}, {how}": bench.show([policy], evaluator) for how, policy in policies.items()}


def generator_pool(world: World, from_slates: Mapping[str, Policy]) -> GeneratorPool:
    """The generators of MG-E: the heuristics and what is fitted to logged slates.

    Less those whose lists are an earlier one's, for first requests of the world: with one tag a video, say, every DPP
    on tags never shows a tag twice and cares for nothing else.

    Raises:
        ValueError: fewer are left than the largest set has.
    """
    pool = GeneratorPool(
        [HeuristicGenerators.standard(world, SLATE), *([PolicyLists(from_slates)] if from_slates else [])]
    )
    request = Simulator(world, slate_size=SLATE).start(DISTANCE_REQUESTS, seed=0).request
    lists_BGK = pool.propose(request, torch.Generator())
    distance_GG = list_distances(request, lists_BGK, lists_BGK, "pair_order").mean(dim=0)
    pool = pool.some(distinct(distance_GG, LEAST_DISTANCE))
    if len(pool.names) < max(SET_SIZES):
        raise ValueError(f"need {max(SET_SIZES)} generators that differ in {world.name!r}, got {len(pool.names)}")
    return pool


def generator_list(bench: Bench, pool: Generators) -> list[dict[str, Any]]:
    """The generators with the values of their lists, their mean distance to the others and the nearest of these."""
    lists_BGK = pool.propose(bench.request, torch.Generator())
    items_BGK = items_of(bench.request, lists_BGK)
    values = {"evaluator_value": bench.evaluated(items_BGK), "true_list_value": bench.true(items_BGK)}
    some = Request(*(tensor[:DISTANCE_REQUESTS] for tensor in bench.request))
    distance_GG = list_distances(some, lists_BGK[:DISTANCE_REQUESTS], lists_BGK[:DISTANCE_REQUESTS], "pair_order")
    distance_GG = distance_GG.mean(dim=0).fill_diagonal_(torch.inf)
    nearest_G = distance_GG.argmin(dim=1)
    return [
        {
            "name": name,
            **{metric: round(float(value_BG[:, index].mean()), 2) for metric, value_BG in values.items()},
            "mean_distance": round(float(distance_GG[index][distance_GG[index].isfinite()].mean()), 3),
            "nearest": pool.names[nearest_G[index]],
            "nearest_distance": round(float(distance_GG[index].min()), 3),
        }
        for index, name in enumerate(pool.names)
    ]


def comprehensiveness(
    bench: Bench, pool: Generators, searches: Mapping[str, Sequence[Sequence[Policy]]], num_orders: int
) -> list[dict[str, Any]]:
    """List comprehensiveness (LC) of sets of generators by both distances, averaged over requests and sets."""
    some = Request(*(tensor[:DISTANCE_REQUESTS] for tensor in bench.request))
    lists_BGK = pool.propose(some, torch.Generator())
    orders = generator_orders(len(pool.names), num_orders)
    sets = {f"MG-E-{k}": [lists_BGK[:, order[:k]] for order in orders] for k in SET_SIZES[1:]}
    for name, seeds in searches.items():
        learned = [PolicyLists({str(i): one for i, one in enumerate(found)}) for found in seeds]
        proposed = [lists.propose(some, torch.Generator()) for lists in learned]
        sets |= {f"CLIG, {name}, {k}": [each[:, :k] for each in proposed] for k in range(2, len(seeds[0]) + 1)}
    return [
        {"set": name, **{kind: round(_mean_comprehensiveness(some, each, kind), 3) for kind in DISTANCES}}
        for name, each in sets.items()
    ]


def _mean_comprehensiveness(request: Request, sets: Sequence[Tensor], kind: Distance) -> float:
    found = [list_comprehensiveness(list_distances(request, lists, lists, kind)).mean() for lists in sets]
    return float(torch.stack(found).mean())


def generator_orders(number: int, num_orders: int) -> list[list[int]]:
    """Random orders of the generators, the same for every world."""
    generator = torch.Generator().manual_seed(2504_15625)
    return [torch.randperm(number, generator=generator).tolist() for _ in range(num_orders)]


def ratio(cells: Mapping[str, Cell], name: str, other: str) -> Cell:
    """True list value of one method over another's, paired by request and, where both have several, by seed."""
    first_SB, second_SB = (cells[method].ratios["true_list_value"][0] for method in (name, other))
    seeds = [len(part) for part in (first_SB, second_SB) if len(part) > 1]
    shape = (min(seeds, default=1), first_SB.shape[1])
    first_SB, second_SB = (np.broadcast_to(part[: shape[0]], shape) for part in (first_SB, second_SB))
    return Cell(ratios={"ratio": (first_SB, second_SB)}, totals={})


CHECKS: tuple[tuple[str, str, float, Any], ...] = (
    ("MG-E-100", "MG-E-20", 1.01, "below"),
    ("MG-E-20", "MG-E-3", 1.02, "above"),
    ("GoalRank", "MG-E-100", 1.03, "above"),
    ("GoalRank, warm start", "MG-E-100", 1.03, "above"),
    ("GoalRank, half auxiliary for good", "MG-E-100", 1.03, "below"),
    ("GoalRank, 10k", "GoalRank, 1k", 1.0, "above"),
    ("GoalRank", "GoalRank, 10k", 1.0, "above"),
    ("GoalRank, 1m", "GoalRank", 1.0, "above"),
    ("GoalRank, 10m", "GoalRank, 1m", 1.0, "above"),
    ("GoalRank", "GoalRank, noise 0.2", 1.0, "above"),
    ("GoalRank, noise 0.2", "GoalRank, noise 0.5", 1.0, "above"),
    ("evaluator search", "best of 100", 1.0, "below"),
    *(
        (f"{share_name(share)}, search", f"{share_name(share)}, best of 100", 1.0, "below")
        for share in SHARES_OF_LOG[:-1]
    ),
    ("additive evaluator, search", "additive evaluator, sort", 1.01, "below"),
    ("additive evaluator, MG-E-100", "additive evaluator, sort", 1.01, "below"),
    ("evaluator search", "additive evaluator, sort", 1.01, "above"),
    *(
        check
        for k in (2, 3)
        for check in (
            (f"CLIG, reward and GC, {k}", f"CLIG, reward only, {k}", 1.0, "above"),
            (f"CLIG, reward only, {k}", f"pointwise and random, {k}", 1.0, "above"),
            (f"pointwise and random, {k}", f"CLIG, GC only, {k}", 1.0, "above"),
        )
    ),
)
"""Method, the one it is divided by, bar, and the side on which the ratio should lie."""


def checks(cells: Mapping[str, Cell], where: str, *, with_bars: bool) -> list[dict[str, Any]]:
    """Every check whose two methods were measured."""
    found = []
    for name, other, bar, side in CHECKS:
        if name not in cells or other not in cells:
            continue
        row = EvaluationResult(cells={(name, where): ratio(cells, name, other)}).row(name, where, "ratio")
        low, high = row.widest
        verdict = judge(
            f"{where}: {name} / {other}, true list value",
            value=row.mean,
            low=low,
            high=high,
            bar=bar if with_bars and _have_seeds(cells, name, other) else None,
            side=side,
        )
        intervals = {"over_seeds": [row.low, row.high], "over_requests": [row.session_low, row.session_high]}
        found.append(to_plain({**dataclasses.asdict(verdict), **intervals, "side": side, "seeds": row.seeds}))
    return found


def _have_seeds(cells: Mapping[str, Cell], *names: str) -> bool:
    """Whether every method that is trained was trained with several seeds: one run cannot carry a claim."""
    trained = [name for name in names if name.startswith(("GoalRank", "CLIG"))]
    return all(len(cells[name].ratios["true_list_value"][0]) > 1 for name in trained)


def in_sessions(
    world: World, name: str, pool: GeneratorPool, goalrank: Mapping[str, Sequence[Policy]], seed: int
) -> list[Row]:
    """Seconds watched in whole sessions by the main methods, and by how much each GoalRank leads."""
    evaluator = evaluator_of(world)
    references: dict[str, Policy] = {
        "pointwise greedy": PointwiseGreedy(SLATE),
        "best of 100": BestOfLists(evaluator, SLATE, num_lists=100),
        "MG-E-100": GeneratorEvaluator(pool.some(generator_orders(len(pool.names), 1)[0][:100]), evaluator),
    }
    result = evaluate({**references, **goalrank}, {name: world}, num_sessions=SESSIONS, seed=seed)
    rows = [result.row(policy, name, "session_watch_time") for policy in result.policies]
    return [*rows, *(result.difference(own, other, name) for own in goalrank for other in references)]
