"""Lists valued on the same requests: what a world's truth and its evaluator say of what each method shows.

Methods are judged by the world's true expectation of the lists that they show for fixed first requests of sessions.
Generators are tried in random orders that are drawn before any world is opened. Every function returns cells by name
of a row, with the metrics ``true_list_value`` and ``evaluator_value`` (expected seconds of a shown list, in truth and
by the evaluator), ``evaluator_gap`` (the excess of the second) and ``evaluator_top_share`` (share of requests whose
list the world's evaluator puts above 99 % of 200 lists drawn around the pointwise sort).

Legend: B requests, G lists of a request, K places, S training seeds.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.baselines import BestOfLists, EvaluatorSearch, PointwiseGreedy, RandomSlate
from agents.rerankers.complementarity import DISTANCES, distinct, list_comprehensiveness, list_distances
from agents.rerankers.heuristics import HeuristicGenerators
from agents.rerankers.multi_generator import (
    GeneratorEvaluator,
    GeneratorPool,
    Generators,
    PolicyLists,
    check_generators,
    items_of,
)
from recsim_env.evaluation import true_list_values
from recsim_env.results import Cell
from recsim_env.simulator import Simulator
from recsim_env.slates import best_first
from recsim_env.types import Decision, ListEvaluator, Policy, Request
from recsim_env.world import World
from reward_models.recommender.list_evaluator import SlateEvaluator

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

    def __init__(self, world: World, num_requests: int, slate_size: int, seed: int):
        self.slate_size = slate_size
        self.simulator = Simulator(world, slate_size=slate_size)
        self.state = self.simulator.start(num_requests, seed)
        self.request = self.state.request
        self.evaluator = evaluator_of(world)
        usual = BestOfLists(self.evaluator, slate_size, num_lists=USUAL_LISTS)
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
            lists = _lists(policies[:k])
            items_BGK = items_of(self.request, lists.propose(self.request, torch.Generator()))
            picked.append(chosen(self.evaluated(items_BGK), self.true(items_BGK)))
        value_SB, true_SB = torch.stack(picked, dim=1)
        return self.cell(value_SB, true_SB)


def chosen(value_BG: Tensor, true_BG: Tensor) -> Tensor:
    """The evaluator's and the true value, (2, B), of the list that the evaluator likes best."""
    best_B1 = value_BG.argmax(dim=1, keepdim=True)
    return torch.cat([value_BG.gather(1, best_B1), true_BG.gather(1, best_B1)], dim=1).T


def evaluator_of(world: World) -> ListEvaluator:
    """The world's list evaluator.

    Raises:
        ValueError: it has none.
    """
    if world.evaluator is None:
        raise ValueError(f"world {world.name!r} has no list evaluator; build it from a log that holds slates")
    return world.evaluator


def reference_cells(bench: Bench) -> dict[str, Cell]:
    """What needs neither training nor generators."""
    size, evaluator = bench.slate_size, bench.evaluator
    return {
        "random": bench.show([RandomSlate(size)]),
        "pointwise greedy": bench.show([PointwiseGreedy(size)]),
        "best of 20": bench.show([BestOfLists(evaluator, size, num_lists=20)]),
        "best of 100": bench.show([BestOfLists(evaluator, size, num_lists=100)]),
        "evaluator search": bench.show([EvaluatorSearch(evaluator, size)]),
    }


def generator_cells(bench: Bench, pool: GeneratorPool, num_orders: int, note: str = "") -> dict[str, Cell]:
    """The evaluator's choice among k generators of a pool, in random orders, alone and beside the pointwise sort."""
    check_generators(pool, bench.request, bench.slate_size)
    lists_BGK = pool.propose(bench.request, torch.Generator())
    items_BGK = items_of(bench.request, lists_BGK)
    value_BG, true_BG = bench.evaluated(items_BGK), bench.true(items_BGK)
    orders = generator_orders(len(pool.names), num_orders)
    few = Request(*(tensor[:DISTANCE_REQUESTS] for tensor in bench.request))
    cells = {}
    for k in (k for k in SET_SIZES if k <= len(pool.names)):
        cell = bench.pick(value_BG, true_BG, [order[:k] for order in orders])
        sets = [lists_BGK[:DISTANCE_REQUESTS, order[:k]] for order in orders]
        cells[f"MG-E-{k}{note}"] = dataclasses.replace(cell, totals=comprehensiveness(few, [sets]) if k > 1 else {})
    sort = 0  # the first heuristic is the pointwise sort, where every search begins
    for k in () if note else (2, 3):
        others = [[sort, *[index for index in order if index != sort][: k - 1]] for order in orders]
        cells[f"pointwise and random, {k}"] = bench.pick(value_BG, true_BG, others)
    return cells


def search_cells(bench: Bench, name: str, searches: Sequence[Sequence[Policy]]) -> dict[str, Cell]:
    """The evaluator's choice among the first k generators of each search, one search for each training seed."""
    few = Request(*(tensor[:DISTANCE_REQUESTS] for tensor in bench.request))
    proposed = [_lists(policies).propose(few, torch.Generator()) for policies in searches]
    return {
        f"{name}, {k}": dataclasses.replace(
            bench.pick_learned(searches, k), totals=comprehensiveness(few, [[lists[:, :k]] for lists in proposed])
        )
        for k in range(2, len(searches[0]) + 1)
    }


def _lists(policies: Sequence[Policy]) -> PolicyLists:
    return PolicyLists({str(index): policy for index, policy in enumerate(policies)})


def additive_cells(bench: Bench, generators: Generators) -> dict[str, Cell]:
    """The control: list methods under an evaluator that adds up single videos, where a sort by it is as good as any."""
    whole = bench.evaluator
    if not isinstance(whole, SlateEvaluator) or whole.is_additive:
        return {}
    evaluator, size = whole.additive(), bench.slate_size

    def sort(request: Request, generator: torch.Generator) -> Decision:
        single_BC = evaluator.score(request, request.candidates_BC.unsqueeze(2)).value_BG
        return Decision(best_first(request, single_BC, size))

    return {
        "additive evaluator, sort": bench.show([sort]),
        "additive evaluator, best of 100": bench.show([BestOfLists(evaluator, size, num_lists=100)]),
        "additive evaluator, MG-E-100": bench.show([GeneratorEvaluator(generators, evaluator)]),
        "additive evaluator, search": bench.show([EvaluatorSearch(evaluator, size)]),
    }


def pressure_cells(bench: Bench, name: str, evaluator: ListEvaluator) -> dict[str, Cell]:
    """An evaluator that chooses from more and more lists, and is climbed at last."""
    size = bench.slate_size
    tried = {f"best of {k}": BestOfLists(evaluator, size, num_lists=k) for k in LISTS_TRIED}
    policies: dict[str, Policy] = {**tried, "search": EvaluatorSearch(evaluator, size)}
    return {f"{name}, {how}": bench.show([policy], evaluator) for how, policy in policies.items()}


def generator_pool(world: World, from_slates: Mapping[str, Policy], slate_size: int) -> GeneratorPool:
    """The generators of MG-E: the heuristics and what is fitted to logged slates.

    Less those whose lists are an earlier one's, for first requests of the world: with one tag a video, say, every DPP
    on tags never shows a tag twice and cares for nothing else.

    Raises:
        ValueError: fewer are left than the largest set has.
    """
    pool = GeneratorPool(
        [HeuristicGenerators.standard(world, slate_size), *([PolicyLists(from_slates)] if from_slates else [])]
    )
    request = Simulator(world, slate_size=slate_size).start(DISTANCE_REQUESTS, seed=0).request
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


def comprehensiveness(request: Request, sets_by_seed: Sequence[Sequence[Tensor]]) -> dict[str, Any]:
    """List comprehensiveness of sets of lists by each distance, averaged over requests and sets: to values (S,)."""
    return {
        f"comprehensiveness/{kind}": np.array(
            [
                np.mean([list_comprehensiveness(list_distances(request, one, one, kind)).mean().item() for one in sets])
                for sets in sets_by_seed
            ]
        )
        for kind in DISTANCES
    }


def generator_orders(number: int, num_orders: int) -> list[list[int]]:
    """Random orders of the generators, the same for every world."""
    generator = torch.Generator().manual_seed(2504_15625)
    return [torch.randperm(number, generator=generator).tolist() for _ in range(num_orders)]
