"""What a list costs: each generator alone and k lists of it, in CPU-seconds of one thread.

Keys: ``list_us`` (one list of each request, by batch size), ``k_lists_over_k`` (k lists over k times one list, by
decoder and k, candidates encoded once), ``methods_us`` (a shown slate by every method of the rerankers table, the
evaluator's part included, by batch size). Networks have the weights they begin with: these change no cost.
"""

from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from agents.baselines import BestOfLists, EvaluatorSearch, PointwiseGreedy
from agents.decoders import DECODERS
from agents.goalrank import GoalRankConfig
from agents.list_policy import ListPolicy, sized
from agents.networks import RequestShape
from agents.rerankers.list_bench import evaluator_of, generator_orders, generator_pool
from agents.rerankers.log_methods import LOG_METHODS, log_method
from agents.rerankers.multi_generator import GeneratorEvaluator, PolicyLists, SampledLists
from experiments.benchmarks.timing import microseconds
from experiments.tables.reranker_methods import FROM_SLATES, with_contrast
from experiments.tables.settings import SLATE
from recsim_env.provenance import stamp
from recsim_env.simulator import Simulator
from recsim_env.types import Policy
from recsim_env.world import World

BATCHES = (1, 256)
NUM_LISTS = (1, 20, 100)


def measure_rerankers(world: World, seconds: float) -> dict[str, Any]:
    """All figures of one world."""
    evaluator = evaluator_of(world)
    requests = {batch: Simulator(world, slate_size=SLATE).start(batch, 0).request for batch in BATCHES}
    shape = RequestShape.of(requests[1], len(world.catalogue), SLATE)

    def ranker_of(config: GoalRankConfig) -> ListPolicy:
        return ListPolicy(config, shape, greedy=True)

    def cost(batch: int, answer: Callable[..., Any], *given: Any) -> float:
        """Microseconds per request."""

        def answered() -> int:
            answer(requests[batch], *given)
            return batch

        return round(microseconds(answered, seconds), 1)

    rankers = {name: ranker_of(GoalRankConfig(decoder=name)) for name in DECODERS}
    report: dict[str, Any] = {"world": world.name, "list_us": {}, "k_lists_over_k": {}, "methods_us": {}, **stamp()}
    generator = torch.Generator().manual_seed(0)
    for name, ranker in tqdm(rankers.items(), desc="decoders", disable=None):
        report["list_us"][name] = {batch: cost(batch, ranker, generator) for batch in BATCHES}
        drawn = {k: cost(256, ranker.sample_group, k, generator) for k in NUM_LISTS}
        report["k_lists_over_k"][name] = {k: round(drawn[k] / (k * drawn[1]), 3) for k in NUM_LISTS[1:]}
    networks = {name: log_method(name).network(shape) for name in LOG_METHODS}
    for network in networks.values():
        network.greedy = True
    from_slates = with_contrast({FROM_SLATES[name]: network for name, network in networks.items()})
    pool = generator_pool(world, from_slates, SLATE)
    order = generator_orders(len(pool.names), 1)[0]
    learned: dict[str, Policy] = {
        "sort": PointwiseGreedy(SLATE),
        **{str(k): ranker_of(GoalRankConfig(seed=k)) for k in (1, 2)},
    }
    methods: dict[str, Policy] = {
        "pointwise greedy": PointwiseGreedy(SLATE),
        **{f"best of {k}": BestOfLists(evaluator, SLATE, num_lists=k) for k in (20, 100)},
        "evaluator search": EvaluatorSearch(evaluator, SLATE),
        **{f"MG-E-{k}": GeneratorEvaluator(pool.some(order[:k]), evaluator) for k in (3, 20, 100)},
        "CLIG, 3": GeneratorEvaluator(PolicyLists(learned), evaluator),
        "GoalRank, best of 20 draws": GeneratorEvaluator(SampledLists(rankers["autoregressive"], 20), evaluator),
        "GoalRank": rankers["autoregressive"],
        **{f"GoalRank, {size}": ranker_of(sized(GoalRankConfig(), size)) for size in ("1k", "10k", "1m", "10m")},
        **from_slates,
    }
    for label, method in tqdm(methods.items(), desc="methods", disable=None):
        report["methods_us"][label] = {batch: cost(batch, method, generator) for batch in BATCHES}
    return report
