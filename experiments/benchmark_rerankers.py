"""What a list costs: each generator alone and k lists of it, in CPU-seconds of one thread.

Keys: ``list_us`` (one list of each request, by batch size), ``k_lists_over_k`` (k lists over k times one list, by
decoder and k, candidates encoded once), ``methods_us`` (a shown slate by method, the evaluator's part included, by
batch size).
"""

from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from agents.baselines import BestOfLists, EvaluatorSearch, PointwiseGreedy
from agents.decoders import DECODERS
from agents.goalrank import GoalRankConfig, GoalRankPolicy
from agents.networks import RequestShape
from agents.rerankers.heuristics import HeuristicGenerators
from agents.rerankers.multi_generator import GeneratorEvaluator, SampledLists
from experiments.benchmark import microseconds
from experiments.provenance import stamp
from experiments.reranker_training import SLATE, evaluator_of
from recsim_env.simulator import Simulator
from recsim_env.types import Policy, Request
from recsim_env.world import World

BATCHES = (1, 256)
NUM_LISTS = (1, 20, 100)


def measure_rerankers(world: World, seconds: float) -> dict[str, Any]:
    """All figures of one world."""
    evaluator = evaluator_of(world)
    requests = {batch: Simulator(world, slate_size=SLATE).start(batch, 0).request for batch in BATCHES}
    shape = RequestShape.of(requests[1], len(world.catalogue), SLATE)
    rankers = {name: GoalRankPolicy(GoalRankConfig(decoder=name), shape, greedy=True) for name in DECODERS}
    report: dict[str, Any] = {"world": world.name, "list_us": {}, "k_lists_over_k": {}, "methods_us": {}, **stamp()}
    generator = torch.Generator().manual_seed(0)
    for name, ranker in tqdm(rankers.items(), desc="decoders", disable=None):
        report["list_us"][name] = {
            batch: _cost(lambda r: ranker(r, generator), request, seconds)  # noqa: B023
            for batch, request in requests.items()
        }
        drawn = {
            k: _cost(lambda r: ranker.sample_group(r, k, generator), requests[256], seconds)  # noqa: B023
            for k in NUM_LISTS
        }
        report["k_lists_over_k"][name] = {k: round(drawn[k] / (k * drawn[1]), 3) for k in NUM_LISTS[1:]}
    methods: dict[str, Policy] = {
        "pointwise greedy": PointwiseGreedy(SLATE),
        "best of 20": BestOfLists(evaluator, SLATE, num_lists=20),
        "best of 100": BestOfLists(evaluator, SLATE, num_lists=100),
        "MG-E-100": GeneratorEvaluator(HeuristicGenerators.standard(world, SLATE).some(range(100)), evaluator),
        "G-E-20, autoregressive": GeneratorEvaluator(SampledLists(rankers["autoregressive"], 20), evaluator),
        "evaluator search": EvaluatorSearch(evaluator, SLATE),
        "GoalRank": rankers["autoregressive"],
    }
    for method_name, method in tqdm(methods.items(), desc="methods", disable=None):
        report["methods_us"][method_name] = {
            batch: _cost(lambda r: method(r, generator), request, seconds)  # noqa: B023
            for batch, request in requests.items()
        }
    return report


def _cost(call: Callable[[Request], Any], request: Request, seconds: float) -> float:
    """Microseconds per request."""

    def answered() -> int:
        call(request)
        return len(request.user_B)

    return round(microseconds(answered, seconds), 1)
