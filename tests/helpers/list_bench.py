"""A small world with a list evaluator that is known, and policies to value in it."""

import torch
from torch import Tensor

from agents.baselines import RetrieverOrder
from agents.rerankers.heuristics import HeuristicGenerators
from agents.rerankers.list_bench import Bench, generator_cells, pressure_cells, reference_cells
from agents.rerankers.multi_generator import GeneratorPool, PolicyLists
from recsim_env.known_worlds import short_video_world
from recsim_env.results import Cell
from recsim_env.types import ListValue, Request
from recsim_env.world import World


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


def bench_world() -> World:
    """A known world whose recommender has an evaluator."""
    return short_video_world(num_users=60, num_items=120, seed=3).replace(evaluator=PredictedSeconds())


def all_generators(world: World) -> GeneratorPool:
    """All generators, those that repeat others' lists in this small world too."""
    return GeneratorPool(
        [HeuristicGenerators.standard(world, 6), PolicyLists({"PRM, logged slates": RetrieverOrder(6)})]
    )


def bench_cells(bench: Bench, pool: GeneratorPool) -> dict[str, Cell]:
    """References, generators, and a mistaken evaluator that chooses from more and more lists."""
    found = {**reference_cells(bench), **generator_cells(bench, pool, 5)}
    return found | pressure_cells(bench, "evaluator of 2% of users", Mistaken())


def mean(cell: Cell, metric: str) -> float:
    """Over seeds."""
    return float(cell.value(metric).mean())
