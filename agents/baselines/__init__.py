"""Reference rankers, one file each; every one is a policy ``(request, generator) -> Decision``."""

from agents.baselines.best_of_lists import BestOfLists
from agents.baselines.evaluator_search import EvaluatorSearch
from agents.baselines.logging_clone import fit_logging_clone
from agents.baselines.pointwise_greedy import PointwiseGreedy
from agents.baselines.popularity import Popularity
from agents.baselines.random_slate import RandomSlate
from agents.baselines.retriever_order import RetrieverOrder

__all__ = [
    "BestOfLists",
    "EvaluatorSearch",
    "PointwiseGreedy",
    "Popularity",
    "RandomSlate",
    "RetrieverOrder",
    "fit_logging_clone",
]
