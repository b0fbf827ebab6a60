"""The policies that every table compares, and how policies and worlds are named on a command line."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from agents.baselines import (
    BestOfLists,
    EvaluatorSearch,
    PointwiseGreedy,
    Popularity,
    RandomSlate,
    RetrieverOrder,
    fit_logging_clone,
)
from agents.policies import load_policy, policy_card
from agents.rerankers.heuristics import HeuristicGenerators
from agents.rerankers.multi_generator import GeneratorEvaluator
from recsim_env.data import LoggedDataset
from recsim_env.evaluation import Contender
from recsim_env.known_worlds import KNOWN_WORLDS
from recsim_env.known_worlds.names import resolve_world
from recsim_env.plugins import load_object, nearest
from recsim_env.types import Policy
from recsim_env.world import World, load_worlds
from reward_models.recommender.operator_requests import operator_requests

CLONE_REQUESTS = 10_000
"""Logged requests that the logging clone is fitted to, at most."""

TO_BEAT = ("pointwise greedy", "best of 20")
"""What a trained ranker has to beat."""

MULTI_GENERATOR = "MG-E"
"""The evaluator's choice among the standard heuristic generators' lists."""


def baselines(world: World, slate_size: int) -> dict[str, Policy]:
    """The policies without training: they share the world's predictor and evaluator with everyone else.

    The evaluator's two are left out where the world has none.
    """
    past_P = world.users.histories.item_P
    count_N = torch.bincount(past_P, minlength=len(world.catalogue)).to(torch.float32)
    policies: dict[str, Policy] = {
        "random": RandomSlate(slate_size),
        "popularity": Popularity(count_N, slate_size),
        "retriever order": RetrieverOrder(slate_size),
        "pointwise greedy": PointwiseGreedy(slate_size),
    }
    if world.evaluator is not None:
        policies["best of 20"] = BestOfLists(world.evaluator, slate_size, num_lists=20)
        policies["evaluator search"] = EvaluatorSearch(world.evaluator, slate_size)
    return policies


def logging_clone(log: LoggedDataset, world: World, slate_size: int) -> Policy:
    """The log's own ranker, imitated by world A's recommender on up to ``CLONE_REQUESTS`` of its requests."""
    requests = operator_requests(log, world)
    ranked = (~requests.uniform_L).nonzero().squeeze(1)
    some = ranked[torch.randperm(len(ranked), generator=torch.Generator().manual_seed(0))[:CLONE_REQUESTS]]
    return fit_logging_clone(requests, slate_size, among=some)


def contender(folder: str | Path, trusted: Sequence[str] = ()) -> Contender:
    """A trained policy with what its training consumed, as its folder says; see ``load_policy`` for ``trusted``."""
    told = policy_card(folder).get("training", {})
    return Contender(
        policies=[load_policy(folder, trusted=trusted)],
        feedback=told.get("feedback", "logged"),
        world_requests=int(told.get("requests", 0)),
    )


def named_policy(name: str, world: World, slate_size: int, trusted: Sequence[str] = ()) -> Policy | Contender:
    """A policy from what a user wrote: a baseline's name, "MG-E", a policy folder, or "module:object".

    A class behind a dotted path is built, with the slate size if it takes an argument; anything else is the policy
    itself.

    Raises:
        ValueError: none of the four, or MG-E in a world without an evaluator.
    """
    known = baselines(world, slate_size)
    if name in known:
        return known[name]
    if name == MULTI_GENERATOR:
        if world.evaluator is None:
            raise ValueError(f"{name} needs a list evaluator to choose by, and world {world.name!r} has none")
        return GeneratorEvaluator(HeuristicGenerators.standard(world, slate_size), world.evaluator)
    folder = Path(name)
    if (folder / "policy.json").exists():
        return contender(folder, trusted)
    if ":" in name:
        found: Any = load_object(name)
        if not isinstance(found, type):
            return found  # type: ignore[no-any-return]
        policy: Policy = found(slate_size) if inspect.signature(found).parameters else found()
        return policy
    if (folder / "policy" / "policy.json").exists():
        raise ValueError(f"{name} is the folder of a training run; its policy is {folder / 'policy'}")
    names = [*sorted(known), MULTI_GENERATOR]
    raise ValueError(
        f"no policy {name!r}{nearest(name, names)}: give one of {names}, a folder with a policy.json, or module:object"
    )


def named_policies(
    given: Sequence[str], world: World, slate_size: int, trusted: Sequence[str] = ()
) -> dict[str, Policy | Contender]:
    """The baselines, and the policies that a user gave as ``name=what``; their folders may name trusted modules.

    Raises:
        ValueError: a policy is not given so, or its name is taken.
    """
    found: dict[str, Policy | Contender] = dict(baselines(world, slate_size))
    for one in given:
        name, separator, what = one.partition("=")
        if not separator:
            raise ValueError(f"policies are given as name=what, got {one!r}")
        if name in found:
            raise ValueError(f"there is a policy {name!r} already; give yours another name than {sorted(found)}")
        found[name] = named_policy(what, world, slate_size, trusted)
    return found


def worlds_in(folder: Path, trusted: Sequence[str] = ()) -> dict[str, World]:
    """Every world of a folder by name, A first; or the one world that the folder, or a known world's name, is.

    Raises:
        ValueError: there is none.
    """
    if (folder / "world.json").exists() or (str(folder) in KNOWN_WORLDS and not folder.exists()):
        world = resolve_world(str(folder), trusted=trusted)
        return {world.name: world}
    found = sorted(path.parent for path in folder.glob("*/world.json"))
    if not found:
        hint = nearest(str(folder), KNOWN_WORLDS) if not folder.exists() else ""
        raise ValueError(
            f"{folder} holds no world{hint}: build some with python -m experiments.build_world, or give the name of a "
            f"known one, {sorted(KNOWN_WORLDS)}"
        )
    return load_worlds({path.name: path for path in found}, trusted=trusted)
