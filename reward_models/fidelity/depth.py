"""Do users of a world stay longer for better slates, and watch more?

Production reports depth and watch time rising together with the quality of ranking. A world in which they do not would
pay for other things than an operator wants. Sessions are played from the worst slates to the best that the world itself
can name; users leave by the world's declared or fitted model, see ``recsim_env.evaluation``.

Shape legend: B requests, C candidates, K places.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from recsim_env.evaluation import Contender, EvaluationResult, EvaluationSettings, evaluate
from recsim_env.known_worlds.oracles import pointwise_oracle
from recsim_env.slates import best_first, items_at, sample_lists
from recsim_env.types import Decision, Policy, Request
from recsim_env.world import World

DEPTH_METRICS = ("session_length", "session_watch_time")
"""Requests of a session, and its seconds."""
LADDER = ("worst", "random", "sort", "best")
"""Rankings in the order of their quality; where the retriever's own order stands among them is not known before."""
DEPTH_SEED = 900_000
DEPTH_SLATE = 6
DEPTH_SESSIONS = 100
"""Sessions of each ranking, enough to tell the steps of the ladder from nothing."""
CLONE = "logging clone"
"""Name of the log's own ranker, imitated, where it plays too."""


def depth_policies(world: World) -> dict[str, Policy | Contender]:
    """Rankings of the candidates, by name.

    By lowest predicted watch time, at random, in the retriever's order, by highest predicted watch time, and by the
    world's own expectation of each video shown alone.
    """
    places = int(world.defaults.get("slate_size", DEPTH_SLATE))

    def policy(choose: Callable[[Request, torch.Generator], torch.Tensor]) -> Policy:
        return lambda request, generator: Decision(choose(request, generator))

    def random(request: Request, generator: torch.Generator) -> torch.Tensor:
        flat_BC = torch.zeros_like(request.retriever_score_BC)
        return items_at(request.candidates_BC, sample_lists(flat_BC, 1, places, generator)[:, 0])

    return {
        "worst": policy(lambda request, _: best_first(request, -request.predicted_BCF[..., 0], places)),
        "random": policy(random),
        "retriever": policy(lambda request, _: request.candidates_BC[:, :places]),
        "sort": policy(lambda request, _: best_first(request, request.predicted_BCF[..., 0], places)),
        "best": Contender(oracle=pointwise_oracle),
    }


def play_depth(
    worlds: Mapping[str, World],
    *,
    policies: Mapping[str, Policy | Contender] | None = None,
    num_sessions: int = DEPTH_SESSIONS,
    seed: int = DEPTH_SEED,
    progress: bool = False,
) -> EvaluationResult:
    """Plays ``depth_policies``, and further ones, on the same sessions in every world."""
    first = next(iter(worlds.values()))
    # None of these rankings asks the list evaluator, and a report of it would take a third of the time.
    bare = {name: world.replace(evaluator=None) for name, world in worlds.items()}
    return evaluate(
        {**depth_policies(first), **(policies or {})},
        bare,
        num_sessions=num_sessions,
        seed=seed,
        settings=EvaluationSettings(true_values=False),
        progress=progress,
    )


def depth_figures(result: EvaluationResult, world: str) -> dict[str, Any]:
    """What was played in one world, as JSON values.

    Returns:
        ``sessions``; ``policies``: by policy and metric ``mean`` and the ends of its 95 % interval, ``low`` and
        ``high``; ``steps``: the same of each ranking of the ladder minus the one below, paired by session.
    """
    policies = {
        policy: {metric: _interval(result.row(policy, world, metric)) for metric in DEPTH_METRICS}
        for policy in result.policies
    }
    steps = [
        {"worse": worse, "better": better, "metric": metric}
        | _interval(result.difference(better, worse, world, metric))
        for metric in DEPTH_METRICS
        for worse, better in itertools.pairwise(LADDER)
    ]
    sessions = result.cells[result.policies[0], world].num_sessions
    return {"sessions": sessions, "policies": policies, "steps": steps}


def _interval(row: Any) -> dict[str, float]:
    return {"mean": row.mean, "low": row.low, "high": row.high}
