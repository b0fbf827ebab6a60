"""The policies that every table compares, and how a policy is named on a command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agents.baselines import (
    BestOfLists,
    EvaluatorSearch,
    LoggingClone,
    PointwiseGreedy,
    Popularity,
    RandomSlate,
    RetrieverOrder,
)
from agents.goalrank import GoalRankPolicy
from recsim_env.evaluation import Contender, Oracle
from recsim_env.plugins import load_object
from recsim_env.types import Policy
from recsim_env.world import World

REFERENCES = ("random", "popularity", "retriever order", "pointwise greedy", "best of 20", "evaluator search")


def references(world: World, slate_size: int, clone: LoggingClone | None = None) -> dict[str, Policy]:
    """The policies without training: they share the world's predictor and evaluator with everyone else.

    The evaluator's two are left out where the world has none.
    """
    past_P = world.users.histories.item_P
    count_N = torch.bincount(past_P, minlength=len(world.catalogue)).to(torch.float32)
    policies: dict[str, Policy] = {
        "random": RandomSlate(slate_size),
        "popularity": Popularity(count_N, slate_size),
        "retriever order": RetrieverOrder(slate_size),
    }
    if clone is not None:
        policies["logging clone"] = clone
    policies["pointwise greedy"] = PointwiseGreedy(slate_size)
    if world.evaluator is not None:
        policies["best of 20"] = BestOfLists(world.evaluator, slate_size, num_lists=20)
        policies["evaluator search"] = EvaluatorSearch(world.evaluator, slate_size)
    return policies


def trained(folders: list[Path], world_requests: int = 0) -> Contender:
    """GoalRank policies of several training seeds as one contender."""
    return Contender(
        policies=[GoalRankPolicy.load(folder) for folder in folders],
        feedback="one slate",
        world_requests=world_requests,
    )


def oracle(search: Oracle) -> Contender:
    """A reference that asks the truth."""
    return Contender(oracle=search, feedback="branched")


def policy_of(name: str, world: World, slate_size: int) -> Policy:
    """A policy from what a user wrote: a reference's name, a policy folder, or "module:object".

    A class behind a dotted path is built with the slate size; anything else is the policy itself.

    Raises:
        ValueError: none of the three.
    """
    known = references(world, slate_size)
    if name in known:
        return known[name]
    if (Path(name) / "policy.json").exists():
        return GoalRankPolicy.load(name)
    if ":" in name:
        found: Any = load_object(name)
        factory: Callable[[int], Policy] | None = found if isinstance(found, type) else None
        return factory(slate_size) if factory else found
    raise ValueError(f"no policy {name!r}: give one of {sorted(known)}, a folder with a policy.json, or module:object")
